// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/thread.hh"

#include <csignal>
#include <memory>
#include <utility>

#include <pthread.h>

namespace cowd {

namespace {

void* run(void* argument) {
  std::unique_ptr<std::function<void()>> work(static_cast<std::function<void()>*>(argument));
  (*work)();
  return nullptr;
}

}  // namespace

bool start_thread(std::function<void()> work, size_t stack_bytes) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, stack_bytes);

  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  auto argument = std::make_unique<std::function<void()>>(std::move(work));
  pthread_t thread;
  const bool started = pthread_create(&thread, &attributes, run, argument.get()) == 0;
  if (started) argument.release();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return started;
}

}  // namespace cowd
