// SPDX-License-Identifier: GPL-2.0-or-later
// The commands of cowctl. Each gives the exit status and throws cowd::Error.
#pragma once

#include "cowd/cowctl/context.hh"

namespace cowctl {

int run_create(Context& context);
int run_info(Context& context);
int run_map(Context& context);
int run_check(Context& context);
int run_snapshot(Context& context);
int run_resize(Context& context);
int run_compare(Context& context);
int run_commit(Context& context);
int run_rebase(Context& context);

int run_attach(Context& context);
int run_detach(Context& context);
int run_list(Context& context);
int run_stats(Context& context);
int run_events(Context& context);
int run_pause(Context& context);
int run_resume(Context& context);
int run_version(Context& context);
int run_log_level(Context& context);

int run_vbd(Context& context);
int run_stores(Context& context);
int run_delete(Context& context);
int run_doctor(Context& context);

}  // namespace cowctl
