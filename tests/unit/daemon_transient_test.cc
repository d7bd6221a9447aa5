// SPDX-License-Identifier: GPL-2.0-or-later
// Transient stores as far as they need no LVM: files, notes, headers, and what is told to lvm2's
// commands. tests/system/transient-stores.sh has the rest.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cowd/core/error.hh"
#include "cowd/daemon/config.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/lvm.hh"
#include "cowd/daemon/store_removals.hh"
#include "cowd/daemon/transient.hh"
#include "formats/common/bytes.hh"
#include "formats/dscow/header.hh"

namespace cowd {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kHost = "0123456789abcdef0123456789abcdef";
constexpr const char* kBoot = "11111111-2222-3333-4444-555555555555";
const StoreBinding kGuest{"c0ffee00-0000-4000-8000-000000000001", "xvda"};

int code_of(const std::function<void()>& call, std::string* sentence = nullptr) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    if (sentence) *sentence = error.what();
    return error.code();
  }
}

class TransientFiles : public testing::Test {
 protected:
  TransientFiles() {
    char name[] = "/tmp/transient-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~TransientFiles() override { fs::remove_all(directory_); }

  std::vector<TransientStore> scan() {
    std::vector<TransientStore> ours;
    for (auto& store : stores_.scan({directory_}))
      if (store.where == directory_) ours.push_back(store);
    return ours;
  }
  size_t entries() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(directory_), fs::directory_iterator{}));
  }
  std::string note_of(const TransientStore& store) const {
    return directory_ + "/" + store.uuid + ".json";
  }
  nlohmann::json read_note(const TransientStore& store) const {
    std::ifstream in(note_of(store));
    return nlohmann::json::parse(in);
  }
  void write_note(const TransientStore& store, const nlohmann::json& json) const {
    std::ofstream(note_of(store)) << json.dump();
  }
  void put_header(const TransientStore& store, const dscow::Header& header) const {
    Buffer block(dscow::kBlock);
    dscow::encode(header, block);
    std::fstream out(store.path, std::ios::in | std::ios::out | std::ios::binary);
    out.write(reinterpret_cast<const char*>(block.data()),
              static_cast<std::streamsize>(block.size()));
  }
  static dscow::Header header() {
    dscow::Header header;
    header.sequence = 1;
    header.geometry = dscow::plan(1 << 20, 4096);
    return header;
  }

  std::string directory_;
  TransientStores stores_{kHost, kBoot};
};

TEST_F(TransientFiles, AreMadeFoundAndRemoved) {
  const auto store = stores_.create(directory_, 3000000, kGuest);
  EXPECT_EQ(store.host_id, kHost);
  EXPECT_EQ(fs::file_size(store.path), store.bytes);
  EXPECT_GE(store.bytes, 3000000U);
  EXPECT_EQ(fs::status(store.path).permissions(), fs::perms(0600));
  const auto found = scan();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].uuid, store.uuid);
  EXPECT_EQ(found[0].path, store.path);
  EXPECT_EQ(found[0].boot_id, kBoot);
  EXPECT_EQ(found[0].binding, kGuest);
  EXPECT_FALSE(found[0].saved);
  EXPECT_EQ(found[0].problem, "");
  stores_.remove(store);
  EXPECT_EQ(entries(), 0U);
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), ENOENT);
}

TEST_F(TransientFiles, SavedOnesAreFoundByTheirDisk) {
  const auto store = stores_.create(directory_, 1 << 20, kGuest);
  EXPECT_FALSE(stores_.find_saved(directory_, kGuest));
  stores_.mark_saved(store, true);
  ASSERT_TRUE(stores_.find_saved(directory_, kGuest));
  EXPECT_EQ(stores_.find_saved(directory_, kGuest)->uuid, store.uuid);
  EXPECT_FALSE(stores_.find_saved(directory_, {kGuest.vm_uuid, "xvdb"}));
  stores_.mark_saved(store, false);
  EXPECT_FALSE(stores_.find_saved(directory_, kGuest));
  EXPECT_EQ(scan().size(), 1U);
}

// What became worthless is removed by a cowd that may not know of the mark.
TEST_F(TransientFiles, SavedOnesGoOnlyIfThatIsSaid) {
  auto store = stores_.create(directory_, 1 << 20, kGuest);
  stores_.mark_saved(store, true);
  std::string sentence;
  EXPECT_EQ(code_of([&] { stores_.remove(store); }, &sentence), EPERM);
  EXPECT_NE(sentence.find("cowctl delete " + store.uuid), std::string::npos) << sentence;
  EXPECT_EQ(entries(), 2U);
  stores_.remove(store, TransientStores::Saved::goes);
  EXPECT_EQ(entries(), 0U);
}

TEST_F(TransientFiles, NeedADirectoryOfTheirOwn) {
  std::string sentence;
  EXPECT_EQ(code_of([&] { stores_.create(directory_ + "/none", 1, {}); }), ENOENT);
  fs::permissions(directory_, fs::perms(0777));
  EXPECT_EQ(code_of([&] { stores_.create(directory_, 1, {}); }, &sentence), EPERM);
  EXPECT_NE(sentence.find("chmod go-w"), std::string::npos) << sentence;
  fs::permissions(directory_, fs::perms(0700));
  fs::create_directory_symlink(directory_, directory_ + "-link");
  EXPECT_NE(code_of([&] { stores_.create(directory_ + "-link", 1, {}); }), 0);
  fs::remove(directory_ + "-link");
  EXPECT_EQ(entries(), 0U);
}

TEST_F(TransientFiles, ABindingIsPlain) {
  EXPECT_EQ(code_of([&] { stores_.create(directory_, 1, {"a,b", "xvda"}); }), EINVAL);
  EXPECT_EQ(code_of([&] { stores_.create(directory_, 1, {"", "x\ny"}); }), EINVAL);
}

TEST_F(TransientFiles, OnesThatAreOpenStay) {
  const auto store = stores_.create(directory_, 1 << 20, kGuest);
  const int fd = open(store.path.c_str(), O_RDONLY);
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EBUSY);
  EXPECT_TRUE(fs::exists(store.path));
  close(fd);
  stores_.remove(store);
}

TEST_F(TransientFiles, OfAnotherHostStay) {
  const auto store = stores_.create(directory_, 1 << 20, kGuest);
  stores_.mark_saved(store, true);
  auto json = read_note(store);
  json["host"] = "another";
  write_note(store, json);
  ASSERT_EQ(scan().size(), 1U);
  EXPECT_EQ(scan()[0].host_id, "another");
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EPERM);
  EXPECT_EQ(code_of([&] { stores_.mark_saved(store, false); }), EPERM);
  EXPECT_FALSE(stores_.find_saved(directory_, kGuest));
  EXPECT_EQ(entries(), 2U);
}

TEST_F(TransientFiles, WhoseFileWasExchangedStay) {
  const auto store = stores_.create(directory_, 1 << 20, kGuest);
  std::ofstream(directory_ + "/other") << "precious";
  fs::rename(directory_ + "/other", store.path);
  ASSERT_EQ(scan().size(), 1U);
  EXPECT_NE(scan()[0].problem.find("not the file that cowd made"), std::string::npos);
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EUCLEAN);
  fs::remove(store.path);
  fs::create_symlink("/etc/passwd", store.path);
  EXPECT_NE(code_of([&] { stores_.remove(store); }), 0);
  EXPECT_TRUE(fs::exists("/etc/passwd"));
  fs::remove(store.path);
  fs::create_hard_link(note_of(store), store.path);
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EUCLEAN);
}

TEST_F(TransientFiles, TheHeaderHasASay) {
  const auto store = stores_.create(directory_, 1 << 20, kGuest);
  auto other = header();
  other.store = *parse_uuid("00000000-0000-4000-8000-00000000000a");
  put_header(store, other);
  std::string sentence;
  EXPECT_EQ(code_of([&] { stores_.remove(store); }, &sentence), EUCLEAN);
  EXPECT_NE(sentence.find("00000000-0000-4000-8000-00000000000a"), std::string::npos) << sentence;
  auto theirs = header();
  theirs.owner = {"another", "x", 1};
  put_header(store, theirs);
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EUCLEAN);
  auto mine = header();
  mine.store = *parse_uuid(store.uuid);
  mine.owner = {kHost, kBoot, 1};
  put_header(store, mine);
  EXPECT_EQ(scan()[0].problem, "");
  std::ofstream(store.path, std::ios::in | std::ios::out) << "garbage over the mark";
  EXPECT_NE(scan()[0].problem, "");
  EXPECT_EQ(code_of([&] { stores_.remove(store); }), EUCLEAN);
  put_header(store, mine);
  stores_.remove(store);
}

TEST_F(TransientFiles, HalfOfOneIsFound) {
  // A note whose file was not made yet.
  const auto first = stores_.create(directory_, 1 << 20, kGuest);
  auto json = read_note(first);
  json["inode"] = 0;
  write_note(first, json);
  fs::remove(first.path);
  ASSERT_EQ(scan().size(), 1U);
  EXPECT_EQ(scan()[0].problem, "");
  stores_.remove(scan()[0]);
  EXPECT_EQ(entries(), 0U);
  // A file whose inode was not noted yet.
  const auto second = stores_.create(directory_, 1 << 20, kGuest);
  json["uuid"] = second.uuid;
  write_note(second, json);
  ASSERT_EQ(scan().size(), 1U);
  stores_.remove(scan()[0]);
  EXPECT_EQ(entries(), 0U);
  // A temporary note, of this host and of another.
  std::ofstream(directory_ + "/." + second.uuid + "." + kHost + ".new") << "{";
  std::ofstream(directory_ + "/." + second.uuid + ".another.new") << "{";
  EXPECT_EQ(scan().size(), 0U);
  EXPECT_EQ(entries(), 1U);
}

TEST_F(TransientFiles, WhatIsNotOursIsNotTouched) {
  const std::string uuid = "00000000-0000-4000-8000-00000000000b";
  std::ofstream(directory_ + "/" + uuid + ".store") << "precious";
  std::ofstream(directory_ + "/README") << "x";
  ASSERT_EQ(scan().size(), 1U);
  EXPECT_NE(scan()[0].problem.find("no note"), std::string::npos);
  EXPECT_EQ(code_of([&] { stores_.remove(scan()[0]); }), EPERM);
  std::ofstream(directory_ + "/" + uuid + ".json") << "not JSON";
  EXPECT_NE(scan()[0].problem, "");
  EXPECT_NE(code_of([&] { stores_.remove(scan()[0]); }), 0);
  EXPECT_EQ(entries(), 3U);
}

TEST(TransientHeader, ZeroesAreNobodys) {
  TransientStore store;
  store.uuid = "00000000-0000-4000-8000-00000000000c";
  store.host_id = kHost;
  const std::vector<std::byte> zeroes(8192);
  EXPECT_EQ(header_disagrees(store, zeroes), "");
  std::vector<std::byte> other(8192);
  other[1080] = std::byte(0x53);
  EXPECT_NE(header_disagrees(store, other), "");
}

// --- lvm ---

TEST(Lvm, OwnDevicesAreRejectedBeforeTheHostsOwnFilter) {
  EXPECT_EQ(lvm::config_text({}, ""), "backup{backup=0 archive=0} activation{process_priority=0}");
  EXPECT_EQ(lvm::config_text({{"dm-3", "dmu-vg.cow"}}, "\"a|.*|\""),
            "devices{global_filter=[\"r|^/dev/dm-3$|\",\"r|^/dev/mapper/dmu-vg.cow$|\","
            "\"r|^/dev/disk/by-id/dm-name-dmu-vg.cow$|\",\"r|^/dev/dmu/|\","
            "\"r|^/dev/disk/by-id/dm-uuid-.*DMU-|\",\"a|.*|\"]} backup{backup=0 archive=0} "
            "activation{process_priority=0}");
  EXPECT_NE(lvm::config_text({{"sdc", ""}}, "").find("[\"r|^/dev/sdc[0-9]*$|\",\"r|^/dev/dmu/|\","),
            std::string::npos);
  EXPECT_NE(lvm::config_text({{"loop3", ""}, {"nbd0", ""}}, "")
                .find("[\"r|^/dev/loop3(p[0-9]+)?$|\",\"r|^/dev/nbd0(p[0-9]+)?$|\","),
            std::string::npos);
  // Nothing of a name becomes a part of the pattern or of the configuration.
  EXPECT_EQ(lvm::config_text({{"dm-3", "a|\"]+"}}, "").find("a|\""), std::string::npos);
}

TEST(StoreDirectories, AreThoseOfTheConfiguration) {
  const std::vector<std::string> known = {"/var/lib/cowd", "/srv/stores/"};
  for (const char* fine :
       {"vg", "/var/lib/cowd", "/var/lib/cowd/", "/srv//stores", "/srv/./stores"})
    EXPECT_NO_THROW(require_store_directory(fine, known)) << fine;
  for (const char* other : {"/var/lib", "/var/lib/cowd/deeper", "/srv", "/"}) {
    std::string sentence;
    EXPECT_EQ(code_of([&] { require_store_directory(other, known); }, &sentence), EINVAL) << other;
    EXPECT_NE(sentence.find("devices.store_directories"), std::string::npos) << sentence;
    EXPECT_NE(sentence.find("/var/lib/cowd, /srv/stores/"), std::string::npos) << sentence;
  }
  EXPECT_EQ(default_config().devices.store_directories, std::vector<std::string>{"/var/lib/cowd"});
}

class Removals : public testing::Test {
 protected:
  // Fails with each of these in turn, then succeeds.
  void begin(std::vector<int> codes) {
    auto remove = [this, codes](const TransientStore& store) {
      const size_t at = tries_++;
      if (at < codes.size()) throw Error(codes[at], "It is in the way of " + store.uuid + ".");
    };
    removals_.emplace(strand_, remove, events_, StoreRemovals::Pauses{1ms, 4ms});
    TransientStore store;
    store.uuid = "s1";
    boost::asio::co_spawn(strand_, removals_->remove("web", store),
                          [this](std::exception_ptr) { why_after_first_ = removals_->why("s1"); });
    io_.run();
  }
  std::vector<std::string> events() const {
    std::vector<std::string> types;
    for (const Event& event : events_.after(0)) types.push_back(event.type);
    return types;
  }

  boost::asio::io_context io_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_ = make_strand(io_);
  EventRing events_;
  std::optional<StoreRemovals> removals_;
  std::atomic<size_t> tries_ = 0;
  std::string why_after_first_;
};

TEST_F(Removals, OneThatWorksIsSilent) {
  begin({});
  EXPECT_EQ(tries_, 1U);
  EXPECT_TRUE(events().empty());
}

TEST_F(Removals, OneThatFailsIsTriedUntilItWorks) {
  begin({ETIMEDOUT, ETIMEDOUT, EBUSY, EBUSY});
  EXPECT_EQ(tries_, 5U);
  EXPECT_EQ(why_after_first_, "It is in the way of s1.");
  EXPECT_EQ(removals_->why("s1"), "");
  EXPECT_EQ(events(), (std::vector<std::string>{"io-error", "store-removed"}));
}

TEST_F(Removals, WhatAnotherRemovedIsGone) {
  begin({EIO, ENOENT});
  EXPECT_EQ(tries_, 2U);
  EXPECT_EQ(removals_->why("s1"), "");
}

// Who comes for it, or deletes it, sees to its end.
TEST_F(Removals, WhatIsASavedDomainsIsLeftAlone) {
  char name[] = "/tmp/removals-XXXXXX";
  const std::string directory = mkdtemp(name);
  TransientStores stores(kHost, kBoot);
  const TransientStore store = stores.create(directory, 1 << 20, {});
  stores.mark_saved(store, true);
  begin({code_of([&] { stores.remove(store); })});
  EXPECT_EQ(tries_, 1U);
  EXPECT_EQ(removals_->why("s1"), "");
  fs::remove_all(directory);
}

TEST_F(Removals, WhatIsNotOursIsLeftAlone) {
  begin({EUCLEAN});
  EXPECT_EQ(tries_, 1U);
  EXPECT_EQ(removals_->why("s1"), "");
  EXPECT_EQ(events(), std::vector<std::string>{"io-error"});
  EXPECT_NE(events_.after(0).front().message.find("leaves it alone"), std::string::npos);
}

// As lvm2 2.03.16 prints it.
constexpr const char* kReport = R"(
  {
      "report": [
          {
              "lv": [
                  {"lv_uuid":"uVkAwF-x", "lv_name":"cowd-a", "vg_name":"vg", "lv_path":"/dev/vg/cowd-a", "lv_size":"4194304", "lv_tags":"cowd.host=h,cowd.transient", "lv_active":"active", "lv_device_open":"open", "lv_time":"1763863200"},
                  {"lv_uuid":"uVkAwF-y", "lv_name":"cowd-b", "vg_name":"vg", "lv_path":"/dev/vg/cowd-b", "lv_size":"8388608", "lv_tags":"", "lv_active":"", "lv_device_open":"", "lv_time":"1763863200"}
              ]
          }
      ]
  }
)";

TEST(Lvm, ReportsAreRead) {
  const auto volumes = lvm::parse_report(kReport);
  ASSERT_EQ(volumes.size(), 2U);
  EXPECT_EQ(volumes[0].uuid, "uVkAwF-x");
  EXPECT_EQ(volumes[0].bytes, 4194304U);
  EXPECT_EQ(volumes[0].tags, (std::vector<std::string>{"cowd.host=h", "cowd.transient"}));
  EXPECT_TRUE(volumes[0].active && volumes[0].open);
  EXPECT_FALSE(volumes[1].active || volumes[1].open);
  EXPECT_TRUE(volumes[1].tags.empty());
  EXPECT_EQ(lvm::parse_report(R"({"report":[{"lv":[]}]})").size(), 0U);
  EXPECT_EQ(code_of([] { lvm::parse_report("  WARNING: no JSON"); }), EPROTO);
  EXPECT_EQ(code_of([] { lvm::parse_report(R"({"report":[{"lv":[{"lv_uuid":1}]}]})"); }), EPROTO);
}

}  // namespace
}  // namespace cowd
