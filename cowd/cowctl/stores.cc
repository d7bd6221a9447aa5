// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl stores, delete
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"

namespace cowctl {

int run_stores(Context& context) {
  const json answer = ask(context, {{"cmd", "stores"}}, "asking cowd");
  if (context.options.json) {
    print_json(std::cout, answer);
    return 0;
  }
  using enum Table::Align;
  Table table({{"UUID"}, {"State"}, {"Size", right}, {"Disk"}, {"Guest"}, {"Created"}, {"Path"}});
  for (const json& store : answer.value("stores", json::array()))
    table.add({cell(store, "uuid"), cell(store, "state"), size_cell(store), cell(store, "vdev"),
               cell(store, "vm_uuid"), cell(store, "created_at"), cell(store, "path")});
  if (context.options.quiet) return 0;
  table.print(std::cout);
  // Below it: what the operator may have to do something about.
  for (const json& store : answer.value("stores", json::array()))
    if (const std::string problem = store.value("problem", ""); !problem.empty())
      std::cout << cell(store, "uuid") << ": " << problem << '\n';
  return 0;
}

int run_delete(Context& context) {
  ask(context, {{"cmd", "store-delete"}, {"store", context.options.target}},
      "deleting " + context.options.target);
  return 0;
}

}  // namespace cowctl
