// SPDX-License-Identifier: GPL-2.0-or-later
// Short random sequences on images over formats/growing, one judgement each.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "formats/common/bytes.hh"
#include "tests/sim/growing_world.hh"
#include "tests/sim/judge.hh"
#include "tests/sim/sequences.hh"

namespace cowd::sim {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kShared = 16;  // sequences on copies of one image of qemu-img

// An image and what its disk holds.
struct Beginning {
  GrowingFormat format;
  std::shared_ptr<SimDisk> top;
  Bytes content;
};

uint64_t some_size(const Variety& variety, uint64_t unit, Random& random) {
  const uint64_t least = std::max<uint64_t>(variety.least / unit, 1);
  const uint64_t most = std::max(variety.most / unit, least);
  return variety.least == variety.most ? variety.most
                                       : (least + random() % (most - least + 1)) * unit;
}

Beginning begin_ours(const Variety& variety, uint64_t seed) {
  Random random(seed);
  const uint32_t block_size = variety.format.large && random() % 3 == 0 ? 4096 : 512;
  const uint64_t unit = std::max<uint64_t>(variety.unit, block_size);
  Bytes content(some_size(variety, unit, random));
  const Bytes& beneath = variety.format.beneath;
  std::copy_n(beneath.begin(), std::min(beneath.size(), content.size()), content.begin());
  return {variety.format, make_image(variety.format, content.size(), block_size, random() % 2),
          content};
}

// An image of qemu-img's on its backing file, with data, and compressed clusters, of its own.
void make_on_backing(const Variety& variety, const std::string& base, const Folder& folder,
                     uint64_t sectors, Random& random) {
  save(*variety.format.files->disks.at(base), folder / base);
  std::string words = "cd " + (folder / "") + " && qemu-img create -q -f " + variety.format.qemu +
                      " -b " + base + " -F " + variety.format.options.at("backing_fmt") + " " +
                      *variety.convert + " image " + std::to_string(sectors * kSectorBytes) +
                      " && qemu-io -f " + variety.format.qemu;
  for (uint64_t i = 1 + random() % 12; i > 0; i--) {
    const bool packed = random() % 2;  // a cluster, which has 512 bytes
    const uint64_t at = random() % sectors;
    const uint64_t len = packed ? 1 : std::min(1 + random() % 200, sectors - at);
    words += " -c 'write -q" + std::string(packed ? " -c" : "") + " -P " + std::to_string(i) + " " +
             std::to_string(at * kSectorBytes) + " " + std::to_string(len * kSectorBytes) + "'";
  }
  EXPECT_EQ(shell(words + " image"), "") << words;
}

Beginning begin_theirs(const Variety& variety, uint64_t seed) {
  const Folder folder;
  Random random(seed);
  const uint64_t bytes = some_size(variety, variety.unit, random);
  if (const auto base = variety.format.options.find("backing_file");
      base != variety.format.options.end()) {
    make_on_backing(variety, base->second, folder, bytes / kSectorBytes, random);
  } else {
    write_file(folder / "disk", some_content(bytes, random));
    // Of a compressed qcow image qemu-img 7.2 makes all and returns 1 without a word.
    shell("qemu-img convert -f raw -O " + variety.format.qemu + " " + *variety.convert + " " +
          (folder / "disk") + " " + (folder / "image"));
    std::filesystem::remove(folder / "disk");
  }
  Beginning made{variety.format, load(folder / "image"), {}};
  const Options& options = variety.format.options;
  if (variety.rebase)
    run(variety.rebase({made.top, options.at("backing_file"), options.at("backing_fmt")}));
  if (made.format.files) {
    made.format.files = std::make_shared<Files>(*made.format.files);
    made.format.files->disks.clear();
    for (const std::string& name : folder.names())
      if (name != "image") made.format.files->disks[name] = load(folder / name);
  }
  made.content = raw_by_others(made.format, *made.top);
  return made;
}

Beginning copy_of(const Beginning& made) {
  Beginning copy = made;
  copy.top = made.top->copy();
  if (!copy.format.files) return copy;
  copy.format.files = std::make_shared<Files>(*made.format.files);
  for (auto& [name, disk] : copy.format.files->disks) disk = disk->copy();
  return copy;
}

void expect_same(const Beginning& it, const Bytes& ours, Image& image) {
  if (it.format.qemu == "vhdi") {
    Bytes theirs = raw_by_others(it.format, *it.top);
    EXPECT_GE(theirs.size(), ours.size());
    theirs.resize(ours.size());
    EXPECT_TRUE(theirs == ours) << "libvhdi reads something else";
    return;
  }
  const Folder folder;
  save_all(it.format, *it.top, folder);
  EXPECT_EQ(judged_by_qemu(folder, it.format.qemu, it.format.qemu_checks, ours, image), "");
}

void play_sequence(const Beginning& it, uint64_t seed) {
  Random random(seed);
  const auto durability = random() % 5 ? Durability::flush : Durability::always;
  Life life(it.format, it.top, seed, durability);
  Guest guest(life.kernel, it.content.size() / kSectorBytes, it.content);
  for (uint64_t sessions = 1 + random() % 2; sessions > 0; sessions--) {
    life.attach();
    play_session(life, guest, random);
    life.detach();
  }
  const CheckResult result = check_of(it.format, it.top);
  EXPECT_EQ(result.errors + result.leaks, 0u) << result.findings.at(0);
  KernelModel after(opener(it.format, it.top, Durability::flush, true));
  run(after.attach());
  guest.use(after);
  run(guest.verify());
  // A discarded sector may have kept what it had: so what we read is what is compared.
  const Bytes ours = run(after.read(0, guest.sectors()));
  expect_same(it, ours, after.image());
  run(after.detach());
}

}  // namespace

void test_differential(const std::vector<Variety>& varieties, uint64_t otherwise) {
  std::map<uint64_t, std::pair<uint64_t, Beginning>> theirs;  // by variety; with their seed
  const Seeds wanted = seeds(otherwise);
  for (uint64_t seed = wanted.first; seed < wanted.end(); seed++) {
    SCOPED_TRACE(again(seed));
    const uint64_t which = seed % varieties.size();
    const Variety& variety = varieties[which];
    if (variety.convert) {
      auto& [made_for, made] = theirs[which];
      const uint64_t group = seed / varieties.size() / kShared + 1;
      if (made_for != group) made = begin_theirs(variety, group);
      made_for = group;
      play_sequence(copy_of(made), seed);
    } else {
      play_sequence(begin_ours(variety, seed), seed);
    }
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace cowd::sim
