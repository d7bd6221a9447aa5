// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/space_state.hh"

#include <cmath>
#include <cstdio>

#include "cowd/core/units.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

constexpr size_t kNamesShown = 8;

std::string percent(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.1f", std::floor(value * 10) / 10);
  return text(digits, " %");
}

}  // namespace

SpaceState::Change SpaceState::judge(const SpaceFigures& figures) {
  figures_ = figures;
  bool was = low_;
  if (figures.fullest() >= settings_->low)
    low_ = true;
  else if (figures.fullest() < settings_->low - kBack)
    low_ = false;
  return low_ == was ? Change::none : low_ ? Change::low : Change::ok;
}

bool SpaceState::begin_hook(Clock::time_point now) {
  if (settings_->hook.empty() || !low_ || hook_runs_) return false;
  if (hook_ran_ && now - hook_begun_ < settings_->hook_interval) return false;
  hook_ran_ = hook_runs_ = true;
  hook_begun_ = now;
  return true;
}

std::string how_full(SpaceId::Kind kind, const SpaceFigures& figures) {
  bool pool = kind == SpaceId::Kind::thin_pool;
  std::string metadata;
  if (figures.metadata_percent)
    metadata = text(", its metadata ", percent(*figures.metadata_percent));
  return text(pool ? "The thin pool " : "The file system ", figures.name, " is ",
              percent(figures.percent), " full (", format_size(figures.used), " of ",
              format_size(figures.size), metadata, ")");
}

std::string name_some(const std::vector<std::string>& names) {
  std::string list;
  for (size_t i = 0; i < names.size() && i < kNamesShown; ++i) list += (i ? ", " : "") + names[i];
  if (names.size() > kNamesShown) list += text(" and ", names.size() - kNamesShown, " more");
  return list;
}

}  // namespace cowd
