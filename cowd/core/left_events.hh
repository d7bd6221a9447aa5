// SPDX-License-Identifier: GPL-2.0-or-later
// What failed while no cowd answered, left in <run dir>/left-events for the next one, which has it
// in its log and events: so one id leads everywhere. Mode 0600; a line a failure, "ID SENTENCE";
// xen-hotplug/block-dmu writes some of them.
#pragma once

#include <string>
#include <vector>

namespace cowd {

struct LeftEvent {
  std::string id;  // e-5f3a90c1
  std::string sentence;
};

// Not where there is no run directory, nor once the file has 64 KiB. Who tells of a failure must
// not fail for that, so nothing is thrown.
void leave_event(const std::string& run_dir, const LeftEvent& event) noexcept;

// Those that are there; the file is gone then. Lines that are none are left out.
std::vector<LeftEvent> take_left_events(const std::string& run_dir);

}  // namespace cowd
