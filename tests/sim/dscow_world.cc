// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/dscow_world.hh"

#include <limits>
#include <utility>

#include "formats/common/options.hh"
#include "formats/dscow/bits.hh"
#include "formats/dscow/headers.hh"

namespace cowd::sim {

OpenRequest dscow_request(std::shared_ptr<Disk> top, std::shared_ptr<Disk> base,
                          const std::string& boot) {
  OpenRequest request;
  request.top = std::move(top);
  request.base = std::move(base);
  request.host_id = "host-a";
  request.boot_id = boot;
  return request;
}

std::shared_ptr<SimDisk> make_base(uint64_t size) {
  return std::make_shared<SimDisk>("/dev/vg/base", size);
}

std::shared_ptr<SimDisk> make_store(uint64_t size, std::shared_ptr<Disk> base,
                                    const std::string& granule, uint32_t block_size) {
  const auto bytes = static_cast<uint32_t>(parse_size("granule", granule));
  auto top =
      std::make_shared<SimDisk>("/dev/vg/cow", dscow::plan(size, bytes).needed(), block_size);
  CreateRequest request;
  request.top = top;
  request.base = std::move(base);
  request.size = size;
  request.options["granule"] = granule;
  run(dscow::create(request));
  return top;
}

Task<std::set<uint64_t>> promoted_granules(Image& image, uint64_t granule_bytes) {
  std::set<uint64_t> granules;
  const std::vector<MapEntry> map = co_await image.map({0, image.sectors()});
  const uint64_t sectors = granule_bytes / 512;
  for (const MapEntry& entry : map)
    for (uint64_t at = entry.range.sector;
         entry.depth == 0 && entry.present && at < entry.range.end(); at += sectors)
      granules.insert(at / sectors);
  co_return granules;
}

Task<std::set<uint64_t>> leaf_granules(Image& image) {
  std::set<uint64_t> granules;
  for (const Answer& region : image.initial()) {
    const Extent extent = std::get<Extent>(region);
    if (extent.granule == 0) continue;
    const uint64_t leaf = uint64_t{extent.granule} * dscow::kPageGranules;
    for (uint64_t at = extent.range.sector; at < extent.range.end(); at += leaf) {
      const Range range{at, std::min(leaf, extent.range.end() - at)};
      const std::vector<Answer> answers = co_await image.resolve(range, Access::leaf);
      const Bitmap bitmap = std::get<Bitmap>(answers.at(0));
      if (!(bitmap.range == range)) throw std::logic_error("the answer is for another leaf");
      const uint64_t first = at / extent.granule, count = range.len / extent.granule;
      for (uint64_t g = 0; bitmap.all && g < count; g++) granules.insert(first + g);
      for (uint64_t g = 0; !bitmap.bits.empty() && g < count;) {
        const uint64_t end = dscow::run_end(bitmap.bits, g, count);
        for (const bool set = dscow::get_bit(bitmap.bits, g); g < end; g++)
          if (set) granules.insert(granules.end(), first + g);
      }
    }
  }
  co_return granules;
}

World::World(std::shared_ptr<SimDisk> top, std::shared_ptr<SimDisk> base)
    : top_(std::move(top)), base_(std::move(base)) {
  geometry_ = run(dscow::Headers::read(*top_)).current().geometry;
  history_.emplace_back();
}

Task<> World::attach(Durability durability, bool reattach) {
  OpenRequest request = dscow_request(top_, base_, boot);
  request.durability = durability;
  request.reattach = reattach;
  image_ = co_await dscow::open(request);
}

Bytes World::data_of(uint64_t granule) const {
  Bytes data(geometry_.granule);
  for (size_t i = 0; i < data.size(); i++) data[i] = std::byte(granule * 31 + i / 512 + 1);
  return data;
}

bool World::holds_its_data(const SimDisk& store, uint64_t granule) const {
  return store.peek(geometry_.granule_offset(granule), geometry_.granule) == data_of(granule);
}

Task<> World::write_data(uint64_t granule) {
  const Bytes data = data_of(granule);
  co_await top_->write_at(geometry_.granule_offset(granule), data);
}

Task<> World::promote(uint64_t first, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    told_.insert(first + i);
    co_await write_data(first + i);
  }
  Promotion promotion;
  const uint64_t sectors = geometry_.granule / 512;
  promotion.range = {first * sectors, count * sectors};
  promotion.dest_sector = geometry_.granule_offset(first) / 512;
  promotion.seq = ++seq_;
  for (uint64_t i = 0; i < count; i++) uncommitted_[first + i] = seq_;
  image_->promoted(promotion);
}

void World::acknowledge(uint64_t seq) {
  for (auto at = uncommitted_.begin(); at != uncommitted_.end();) {
    if (at->second > seq) {
      ++at;
      continue;
    }
    acknowledged_.insert(at->first);
    at = uncommitted_.erase(at);
  }
  top_->mark(history_.size());
  history_.push_back(acknowledged_);
}

Task<> World::flush() {
  const uint64_t seq = seq_;
  co_await top_->flush();
  co_await image_->commit(seq, true);
  acknowledge(seq);
}

Task<> World::timer() {
  const uint64_t seq = seq_;
  co_await image_->commit(seq, false);
  acknowledge(seq);
}

Task<> World::detach() {
  co_await image_->close();
  acknowledge(std::numeric_limits<uint64_t>::max());
  image_.reset();
}

Task<> World::rewrite_uncommitted() {
  const std::map<uint64_t, uint64_t> again = uncommitted_;
  for (const auto& [granule, seq] : again) co_await write_data(granule);
}

}  // namespace cowd::sim
