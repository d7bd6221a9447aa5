// SPDX-License-Identifier: GPL-2.0-or-later
// The raw format: the disk is the destination, block for block. There is no
// metadata, so nothing is ever committed, and the kernel needs one extent in all.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "formats/plugin.hh"

namespace cowd::raw {

class RawImage : public Image {
 public:
  explicit RawImage(OpenRequest request);

  uint64_t sectors() const override;
  std::vector<Destination> destinations() const override;
  uint32_t discard_granularity() const override;
  std::vector<Answer> initial() const override;
  Task<std::vector<Answer>> resolve(Range range, Access access) override;
  void promoted(const Promotion& promotion) override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  // Both are passed down to the destination.
  Task<std::vector<Answer>> discard(Range range) override;
  Task<std::vector<Answer>> zero(Range range) override;
  Task<std::vector<MapEntry>> map(Range range) override;
  Task<> preserve() override;
  Task<> close() override;
  nlohmann::json stats() const override;

 private:
  void require_within(Range range) const;

  const OpenRequest request_;
};

Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<> resize(ResizeRequest request);

}  // namespace cowd::raw
