// SPDX-License-Identifier: GPL-2.0-or-later
// transient-tool: cowd's transient stores without cowd, for transient-stores.sh.
//
//   transient-tool [--host ID] create WHERE BYTES VM VDEV
//   transient-tool [--host ID] scan [DIRECTORY...]
//   transient-tool [--host ID] save|unsave|remove|delete UUID [DIRECTORY...]
//   transient-tool [--host ID] find WHERE VM VDEV
//
// remove is what cowd does with a store that is worthless, delete what an operator may do with a
// saved one. Prints stores as JSON, a line each. Status 1 and the sentence for an Error.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/host.hh"
#include "cowd/daemon/transient.hh"

namespace {

using cowd::TransientStore;

void print(const TransientStore& store) {
  std::cout << nlohmann::json{{"uuid", store.uuid},
                              {"where", store.where},
                              {"path", store.path},
                              {"lv_uuid", store.lv_uuid},
                              {"host", store.host_id},
                              {"boot", store.boot_id},
                              {"vm", store.binding.vm_uuid},
                              {"vdev", store.binding.vdev},
                              {"saved", store.saved},
                              {"bytes", store.bytes},
                              {"created_at", store.created_at},
                              {"problem", store.problem}}
                   .dump()
            << "\n";
}

int usage() {
  std::cerr << "usage: transient-tool [--host ID] create|scan|save|unsave|remove|delete|find ...\n";
  return 2;
}

TransientStore by_uuid(cowd::TransientStores& stores, const std::vector<std::string>& words) {
  for (const auto& store : stores.scan({words.begin() + 1, words.end()}))
    if (store.uuid == words[0]) return store;
  throw cowd::Error(ENOENT, "scan() finds no store " + words[0] + ".");
}

int run(cowd::TransientStores& stores, const std::string& command,
        const std::vector<std::string>& words) {
  if (command == "create" && words.size() == 4) {
    print(stores.create(words[0], std::stoull(words[1]), {words[2], words[3]}));
  } else if (command == "scan") {
    std::vector<std::string> complaints;
    for (const auto& store : stores.scan(words, &complaints)) print(store);
    for (const auto& sentence : complaints) std::cerr << sentence << "\n";
  } else if ((command == "save" || command == "unsave") && !words.empty()) {
    stores.mark_saved(by_uuid(stores, words), command == "save");
  } else if (command == "remove" && !words.empty()) {
    stores.remove(by_uuid(stores, words));
  } else if (command == "delete" && !words.empty()) {
    stores.remove(by_uuid(stores, words), cowd::TransientStores::Saved::goes);
  } else if (command == "find" && words.size() == 3) {
    const auto store = stores.find_saved(words[0], {words[1], words[2]});
    if (!store) return 3;
    print(*store);
  } else {
    return usage();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  try {
    std::string host = cowd::host_id();
    if (words.size() >= 2 && words[0] == "--host") {
      host = words[1];
      words.erase(words.begin(), words.begin() + 2);
    }
    if (words.empty()) return usage();
    const std::string command = words[0];
    words.erase(words.begin());
    cowd::TransientStores stores(host, cowd::boot_id());
    return run(stores, command, words);
  } catch (const cowd::Error& error) {
    std::cerr << cowd::errno_name(error.code()) << ": " << error.what() << "\n";
    return 1;
  }
}
