// SPDX-License-Identifier: GPL-2.0-or-later
// Headers, limits, refusals; what qemu-img makes is read, and what it says is said.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "formats/common/bytes.hh"
#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

void qemu(std::vector<std::string> words) {
  std::string output;
  const std::string what = words[0] + " " + words[1];
  ASSERT_EQ(run_program(std::move(words), &output), 0) << what << ": " << output;
}

std::string qemu_output(std::vector<std::string> words) {
  std::string output;
  run_program(std::move(words), &output);
  return output;
}

// Compressible and not, with holes.
Bytes pattern(uint64_t size, uint64_t seed) {
  Bytes bytes(size);
  Random random(seed);
  for (uint64_t at = 0; at < size; at += 4096) {
    const uint64_t kind = random() % 4;
    for (uint64_t i = at; i < std::min(at + 4096, size); i++)
      bytes[i] = kind == 0   ? std::byte{0}
                 : kind == 1 ? std::byte(random())
                             : std::byte(at / 4096 + i % 7);
  }
  return bytes;
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

Error open_error(std::shared_ptr<SimDisk> disk, bool read_only = true) {
  OpenRequest request = qcow2_request(disk, std::make_shared<FakeReferences>());
  request.read_only = read_only;
  const auto [code, sentence] = failure_of(open(request));
  return Error(code, sentence);
}

template <typename T>
void poke_be(SimDisk& disk, uint64_t offset, T value) {
  Bytes bytes(sizeof(T));
  store_be<T>(bytes, 0, value);
  disk.poke(offset, bytes);
}

TEST(Qcow2Format, RefcountsOfAllWidths) {
  for (uint32_t order = 0; order <= 6; order++) {
    Bytes block(512);
    const uint64_t max = order == 6 ? UINT64_MAX : (uint64_t{1} << (1U << order)) - 1;
    const uint64_t count = 512 * 8 >> order;
    for (uint64_t i = 0; i < count; i++) set_refcount(block, i, order, i * 7 & max);
    for (uint64_t i = 0; i < count; i++) ASSERT_EQ(get_refcount(block, i, order), (i * 7 & max));
    set_refcount(block, count - 1, order, max);
    EXPECT_EQ(block.back(), std::byte(order < 3 ? std::to_integer<int>(block.back()) : 0xff));
    EXPECT_EQ(get_refcount(block, count - 1, order), max);
  }
}

TEST(Qcow2Format, WhatItMakesQemuTakes) {
  const TempFolder folder;
  // QEMU looks for a relative name where it was started.
  const std::string file = folder.path("data");
  const std::vector<Options> all = {{},
                                    {{"cluster_size", "512"}},
                                    {{"cluster_size", "2M"}},
                                    {{"compat", "0.10"}},
                                    {{"refcount_bits", "1"}},
                                    {{"refcount_bits", "64"}, {"cluster_size", "4K"}},
                                    {{"lazy_refcounts", "on"}},
                                    {{"extended_l2", "on"}},
                                    {{"extended_l2", "on"}, {"cluster_size", "16K"}},
                                    {{"compression_type", "zstd"}},
                                    {{"preallocation", "metadata"}},
                                    {{"preallocation", "metadata"}, {"cluster_size", "512"}},
                                    {{"preallocation", "metadata"}, {"compat", "0.10"}},
                                    {{"preallocation", "metadata"}, {"extended_l2", "on"}},
                                    {{"preallocation", "falloc"}},
                                    {{"data_file", file}},
                                    {{"data_file", file}, {"data_file_raw", "on"}},
                                    {{"data_file", file}, {"preallocation", "metadata"}}};
  for (const Options& options : all) {
    const auto references = std::make_shared<FakeReferences>();
    const auto data = std::make_shared<SimDisk>(file, 512, 512, false);
    references->add(file, data);
    const auto disk = make_qcow2(10 * kMiB + 512, options, references);
    std::string output;
    EXPECT_EQ(qemu_check(*disk, &output), 0) << output;
    const CheckResult result = check_qcow2(disk);
    EXPECT_EQ(result.errors + result.leaks, 0u);
    const std::string path = folder.path("image");
    save(*disk, path);
    if (options.count("data_file")) save(*data, file);
    const Bytes zeroes(10 * kMiB + 512);
    EXPECT_EQ(qemu_bytes(path), zeroes);
    EXPECT_EQ(image_bytes(disk, references), zeroes);
    const uint64_t clusters = result.total_granules;
    EXPECT_EQ(result.allocated_granules, options.count("preallocation") ? clusters : 0);
    const auto theirs = nlohmann::json::parse(
        qemu_output({"qemu-img", "info", "--output=json", "-f", "qcow2", path}));
    const nlohmann::json ours = run(info(disk));
    for (const char* key : {"virtual-size", "cluster-size", "format", "dirty-flag"})
      EXPECT_EQ(ours.at(key), theirs.at(key)) << key;
    for (const auto& [key, value] : theirs.at("format-specific").at("data").items())
      EXPECT_EQ(ours.at("format-specific").at("data").value(key, nlohmann::json()), value) << key;
  }
}

TEST(Qcow2Format, ReadsWhatQemuMade) {
  const TempFolder folder;
  const Bytes bytes = pattern(3 * kMiB + 4096 * 3, 1);
  write_file(folder.path("raw"), bytes);
  const std::vector<std::vector<std::string>> all = {{},
                                                     {"-o", "compat=0.10"},
                                                     {"-o", "cluster_size=512"},
                                                     {"-o", "cluster_size=2M"},
                                                     {"-o", "extended_l2=on"},
                                                     {"-o", "extended_l2=on,cluster_size=16k"},
                                                     {"-o", "refcount_bits=1"},
                                                     {"-o", "preallocation=metadata"},
                                                     {"-o", "lazy_refcounts=on"},
                                                     {"-c"},
                                                     {"-c", "-o", "cluster_size=4k"},
                                                     {"-c", "-o", "compression_type=zstd"},
                                                     {"-c", "-o", "compat=0.10"},
                                                     {"-c", "-o", "extended_l2=on"}};
  for (const auto& options : all) {
    std::vector<std::string> words = {"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    words.insert(words.end(), options.begin(), options.end());
    words.push_back(folder.path("raw"));
    words.push_back(folder.path("image"));
    SCOPED_TRACE(options.empty() ? "" : options.back());
    ASSERT_NO_FATAL_FAILURE(qemu(words));
    const auto disk = load(folder.path("image"), false);
    EXPECT_EQ(image_bytes(disk), bytes);
    const auto on_4k = load(folder.path("image"), false, 4096);
    EXPECT_EQ(image_bytes(on_4k), bytes);
    const CheckResult result = check_qcow2(disk);
    EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
    EXPECT_EQ(result.leaks, 0u);
  }
}

TEST(Qcow2Format, ReadsADataFile) {
  const TempFolder folder;
  const Bytes bytes = pattern(2 * kMiB, 2);
  write_file(folder.path("raw"), bytes);
  const std::string data = folder.path("data");
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o",
                                "data_file=" + data, folder.path("raw"), folder.path("image")}));
  const auto references = std::make_shared<FakeReferences>();
  references->add(data, load(data, false));
  const auto disk = load(folder.path("image"), false);
  EXPECT_EQ(image_bytes(disk, references), bytes);
  EXPECT_EQ(check_qcow2(disk).errors, 0u);
}

TEST(Qcow2Format, ReadsChains) {
  const TempFolder folder;
  for (const char* option : {"cluster_size=64k", "cluster_size=64k,extended_l2=on",
                             "cluster_size=512", "cluster_size=64k,compat=0.10"})
    for (const uint64_t size : {kMiB, 3 * kMiB}) {
      SCOPED_TRACE(option);
      const Bytes bytes = pattern(2 * kMiB - 512, size);
      write_file(folder.path("raw"), bytes);
      const std::string middle = folder.path("middle"), top = folder.path("top");
      const std::string text = std::to_string(size);
      ASSERT_NO_FATAL_FAILURE(
          qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", folder.path("raw"), "-F", "raw",
                "-o", option, middle, std::to_string(3 * kMiB / 2)}));
      ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 1 3k 9k", "-c",
                                    "write -z 300k 64k", "-c", "write -P 9 900k 300k", middle}));
      ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F",
                                    "qcow2", "-o", option, top, text}));
      ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 3 70k 5k", "-c",
                                    "write -z 512k 128k", "-c", "write -P 8 1000k 1k", top}));
      const auto references = std::make_shared<FakeReferences>();
      references->add(folder.path("raw"), load(folder.path("raw"), false));
      references->add(middle, load(middle, false));
      const auto disk = load(top, false);
      EXPECT_EQ(image_bytes(disk, references), qemu_bytes(top));

      // The map, entry by entry.
      const auto theirs = nlohmann::json::parse(
          qemu_output({"qemu-img", "map", "--output=json", "-f", "qcow2", top}));
      OpenRequest request = qcow2_request(disk, references);
      request.read_only = true;
      const std::unique_ptr<Image> image = run(open(request));
      const std::vector<MapEntry> ours = run(image->map({0, image->sectors()}));
      uint64_t at = 0;
      for (const MapEntry& entry : ours) {
        ASSERT_EQ(entry.range.sector, at);
        at = entry.range.end();
        const auto found = std::ranges::find_if(theirs, [&](const nlohmann::json& each) {
          const uint64_t start = each.at("start"), length = each.at("length");
          return entry.range.sector * 512 >= start && entry.range.sector * 512 < start + length;
        });
        ASSERT_NE(found, theirs.end());
        SCOPED_TRACE(found->dump() + " at " + std::to_string(entry.range.sector * 512));
        EXPECT_EQ(entry.zero, found->at("zero"));
        EXPECT_EQ(entry.data, found->at("data"));
        EXPECT_EQ(entry.present, found->at("present"));
        EXPECT_EQ(entry.depth, found->at("depth"));
        const bool offset = entry.has_offset && entry.data;
        if (offset && found->contains("offset")) {
          EXPECT_EQ(entry.offset - entry.range.sector * 512,
                    found->at("offset").get<uint64_t>() - found->at("start").get<uint64_t>());
        }
      }
      EXPECT_EQ(at, image->sectors());
    }
}

TEST(Qcow2Format, ABackingFileWithoutAFormatIsRefused) {
  const auto references = std::make_shared<FakeReferences>();
  references->add("base.raw", std::make_shared<SimDisk>("base.raw", kMiB));
  const auto disk =
      make_qcow2(0, {{"backing_file", "base.raw"}, {"backing_fmt", "raw"}}, references);
  EXPECT_EQ(run(info(disk)).at("virtual-size"), kMiB);
  EXPECT_EQ(run(info(disk)).at("backing-filename-format"), "raw");
  poke_be<uint32_t>(*disk, 104, 0x12345678);  // an extension that nobody knows
  const Error error = open_error(disk);
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_NE(std::string(error.what()).find("-F FORMAT"), std::string::npos) << error.what();
}

struct Poke {
  const char* what;
  uint64_t offset;
  int width;
  uint64_t value;
  int code;
  const char* words;
  bool read_only = true;
};

TEST(Qcow2Format, BadHeadersAreRefusedWithASentence) {
  const Poke pokes[] = {
      {"magic", 0, 4, 0x51464900, EINVAL, "no qcow2 image"},
      {"version", 4, 4, 4, ENOTSUP, "version 4"},
      {"cluster_bits", 20, 4, 8, EINVAL, "2^8"},
      {"cluster_bits", 20, 4, 22, EINVAL, "2^22"},
      {"size", 24, 8, 1000, EINVAL, "1000"},
      {"size", 24, 8, uint64_t{1} << 61, EINVAL, "too many"},
      {"size", 24, 8, 0, EINVAL, "no bytes"},
      {"size beyond L1", 24, 8, uint64_t{1} << 50, EINVAL, "L1 table"},
      {"AES", 32, 4, 1, ENOTSUP, "AES"},
      {"LUKS", 32, 4, 2, ENOTSUP, "LUKS"},
      {"l1_size", 36, 4, 0xffffffff, EINVAL, "32 MiB"},
      {"l1_offset", 40, 8, 0x30001, EINVAL, "L1 table"},
      {"l1_offset", 40, 8, uint64_t{1} << 57, EINVAL, "L1 table"},
      {"l1_offset", 40, 8, uint64_t{1} << 40, EINVAL, "beyond the end"},
      {"refcount table", 48, 8, 0, EINVAL, "refcount table"},
      {"refcount clusters", 56, 4, 0x1000000, EINVAL, "8 MiB"},
      {"refcount clusters", 56, 4, 0, EINVAL, "none"},
      {"snapshots", 60, 4, 0x7fffffff, EINVAL, "snapshots"},
      {"incompatible", 72, 8, 1 << 20, ENOTSUP, "0x100000"},
      {"zstd bit without type", 72, 8, 8, EINVAL, "contradict"},
      {"refcount_order", 96, 4, 7, EINVAL, "2^7"},
      {"header_length", 100, 4, 96, EINVAL, "96"},
      {"header_length", 100, 4, 107, EINVAL, "107"},
      {"header_length", 100, 4, 0x10008, EINVAL, "longer than a cluster"},
      {"backing offset", 8, 8, 65537, EINVAL, "backing"},
      {"backing size", 8, 8, 1024, EINVAL, "backing"},
      {"extension", 108, 4, 0x7fffffff, EINVAL, "extension"},
      {"LUKS extension", 104, 4, 0x0537be77, ENOTSUP, "LUKS"},
      {"data file without name", 72, 8, 4, EINVAL, "another file"},
      {"corrupt", 72, 8, 2, EROFS, "damaged", false},
      {"small extended", 20, 4, 13, EINVAL, "16 KiB"},
  };
  for (const Poke& poke : pokes) {
    SCOPED_TRACE(poke.what);
    const auto disk = make_qcow2(kMiB);
    if (poke.width == 4)
      poke_be<uint32_t>(*disk, poke.offset, static_cast<uint32_t>(poke.value));
    else
      poke_be<uint64_t>(*disk, poke.offset, poke.value);
    if (std::string(poke.what) == "small extended") poke_be<uint64_t>(*disk, 72, kExtendedL2);
    if (std::string(poke.what) == "backing size") poke_be<uint32_t>(*disk, 16, 5000);
    const Error error = open_error(disk, poke.read_only);
    EXPECT_EQ(error.code(), poke.code) << error.what();
    EXPECT_NE(std::string(error.what()).find(poke.words), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find("disk.qcow2"), 0u) << error.what();
  }
}

TEST(Qcow2Format, RequestsThatMakeNoSenseAreRefused) {
  const auto disk = make_qcow2(kMiB);
  OpenRequest request = qcow2_request(disk);
  request.durability = Durability::transient;
  EXPECT_EQ(failure_of(open(request)).first, EINVAL);
  request = qcow2_request(disk);
  request.base = std::make_shared<SimDisk>("base", kMiB);
  EXPECT_EQ(failure_of(open(request)).first, EINVAL);
  disk->set_read_only(true);
  EXPECT_EQ(failure_of(open(qcow2_request(disk))).first, EROFS);
  const auto make = [](const Options& options, uint64_t size = kMiB) {
    CreateRequest create_request;
    create_request.top = std::make_shared<SimDisk>("new", 0, 512, false);
    create_request.size = size;
    create_request.options = options;
    return failure_of(create(create_request)).first;
  };
  EXPECT_EQ(make({}), 0);
  EXPECT_EQ(make({}, 0), EINVAL);
  EXPECT_EQ(make({{"cluster_size", "3K"}}), EINVAL);
  EXPECT_EQ(make({{"cluster_size", "4M"}}), EINVAL);
  EXPECT_EQ(make({{"compat", "2"}}), EINVAL);
  EXPECT_EQ(make({{"refcount_bits", "3"}}), EINVAL);
  EXPECT_EQ(make({{"refcount_bits", "8"}, {"compat", "0.10"}}), EINVAL);
  EXPECT_EQ(make({{"lazy_refcounts", "maybe"}}), EINVAL);
  EXPECT_EQ(make({{"backing_file", "x"}}), EINVAL);
  EXPECT_EQ(make({{"backing_fmt", "raw"}}), EINVAL);
  EXPECT_EQ(make({{"data_file", "x"}}), EINVAL);  // without references
  EXPECT_EQ(make({{"data_file_raw", "on"}}), EINVAL);
  EXPECT_EQ(make({{"extended_l2", "on"}, {"cluster_size", "8K"}}), EINVAL);
  EXPECT_EQ(make({{"extended_l2", "on"}, {"compat", "0.10"}}), EINVAL);
  EXPECT_EQ(make({{"compression_type", "zstd"}, {"compat", "0.10"}}), EINVAL);
  EXPECT_EQ(make({{"compression_type", "lzo"}}), EINVAL);
  EXPECT_EQ(make({{"encryption", "on"}}), ENOTSUP);
  EXPECT_EQ(make({{"preallocation", "some"}}), EINVAL);
  EXPECT_EQ(make({{"preallocation", "metadata"}, {"backing_file", "x"}, {"backing_fmt", "raw"}}),
            EINVAL);
  EXPECT_EQ(make({{"colour", "red"}}), EINVAL);
  EXPECT_EQ(make({{"cluster_size", "512"}, {"size", "100T"}}), EINVAL);
  // What holds something is not overwritten unasked.
  CreateRequest again;
  again.top = make_qcow2(kMiB);
  again.size = 2 * kMiB;
  EXPECT_EQ(failure_of(create(again)).first, EEXIST);
  again.force = true;
  EXPECT_EQ(failure_of(create(again)).first, 0);
  EXPECT_EQ(run(info(again.top)).at("virtual-size"), 2 * kMiB);
}

// Ours, filled by qemu-io, is served by us.
TEST(Qcow2Format, WhatItMakesQemuWritesTo) {
  const TempFolder folder;
  const std::string file = folder.path("data");
  for (const Options& options :
       {Options{{"extended_l2", "on"}},
        Options{{"extended_l2", "on"}, {"preallocation", "metadata"}}, Options{{"data_file", file}},
        Options{{"data_file", file}, {"data_file_raw", "on"}},
        Options{{"preallocation", "metadata"}}}) {
    const auto references = std::make_shared<FakeReferences>();
    const auto data = std::make_shared<SimDisk>(file, 512, 512, false);
    references->add(file, data);
    const std::string path = folder.path("image");
    save(*make_qcow2(2 * kMiB, options, references), path);
    save(*data, file);
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 5 3k 5k", "-c",
                                  "write -P 6 300k 500k", "-c", "write -z 400k 64k", "-c",
                                  "write -z 5k 1k", "-c", "write -P 7 1999k 1k", path}));
    references->add(file, load(file, false));
    const auto disk = load(path, true);
    EXPECT_EQ(image_bytes(disk, references), qemu_bytes(path));
    EXPECT_EQ(check_qcow2(disk).errors, 0u);
    run(open(qcow2_request(disk, references)));
  }
}

// Places that were there before may hold anything: they are flagged as zeroes.
TEST(Qcow2Format, PreallocationShowsNothingOfWhatWasThere) {
  for (const Options& options :
       {Options{{"preallocation", "metadata"}}, Options{{"preallocation", "falloc"}},
        Options{{"preallocation", "metadata"}, {"extended_l2", "on"}}}) {
    const auto disk = std::make_shared<SimDisk>("disk.qcow2", 8 * kMiB);  // full of garbage
    CreateRequest request;
    request.top = disk;
    request.size = 2 * kMiB;
    request.options = options;
    run(create(request));
    EXPECT_EQ(image_bytes(disk), Bytes(2 * kMiB));
    std::string output;
    EXPECT_EQ(qemu_check(*disk, &output), 0) << output;
  }
}

TEST(Qcow2Format, ADataFileWithSomethingInItIsNotLost) {
  const auto references = std::make_shared<FakeReferences>();
  const auto data = std::make_shared<SimDisk>("data", 64 * kKiB, 512, false);
  references->add("data", data);
  CreateRequest request;
  request.top = std::make_shared<SimDisk>("new", 0, 512, false);
  request.size = kMiB;
  request.options = {{"data_file", "data"}};
  request.references = references;
  EXPECT_EQ(failure_of(create(request)).first, EEXIST);
  EXPECT_EQ(data->size(), 64 * kKiB);
  request.force = true;
  EXPECT_EQ(failure_of(create(request)).first, 0);
  EXPECT_EQ(data->size(), kMiB);
}

// A place in the data file that is not the cluster's own.
TEST(Qcow2Format, AnEntryThatNamesAnotherPlaceInTheDataFileIsDamage) {
  const auto references = std::make_shared<FakeReferences>();
  references->add("data", std::make_shared<SimDisk>("data", 512, 512, false));
  const auto disk =
      make_qcow2(kMiB, {{"data_file", "data"}, {"preallocation", "metadata"}}, references);
  const Header header = run(read_header(*disk));
  const Bytes l1 = disk->peek(header.l1_offset, 8);
  poke_be<uint64_t>(*disk, (load_be<uint64_t>(l1, 0) & kOffsetMask) + 8, kCopied | 0x50000);
  EXPECT_EQ(check_qcow2(disk).errors, 1u);
  EXPECT_THROW((void)image_bytes(disk, references), Error);
}

uint64_t most_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

// An L2 table of 64 KiB in a sparse file of 4 TiB.
TEST(Qcow2Format, ClustersFarFromEachOtherTakeLittleMemory) {
  const auto disk = make_qcow2(kGiB);
  const Header header = run(read_header(*disk));
  const uint64_t table = round_up(disk->size(), header.cluster());
  const uint64_t step = 8192 * header.cluster();
  disk->set_size(1ULL << 42);
  Bytes entries(header.cluster()), entry(8);
  for (uint64_t i = 1; i < header.l2_entries(); i++)
    store_be<uint64_t>(entries, i * 8, i * step | kCopied);
  disk->poke(table, entries);
  store_be<uint64_t>(entry, 0, table | kCopied);
  disk->poke(header.l1_offset, entry);
  const uint64_t before = most_memory();
  EXPECT_GE(check_qcow2(disk).errors, header.l2_entries() - 1);
  EXPECT_LT(most_memory() - before, 32 * kMiB);
}

double seconds_used() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// 300 blocks of holes, of 16 million refcounts each.
TEST(Qcow2Format, RefcountsOfNothingTakeNoTime) {
  const auto disk = make_qcow2(kGiB, {{"cluster_size", "2M"}, {"refcount_bits", "1"}});
  const Header header = run(read_header(*disk));
  const uint64_t first = round_up(disk->size(), header.cluster());
  disk->set_size(first + 300 * header.cluster());
  for (uint64_t i = 0; i < 300; i++)
    poke_be<uint64_t>(*disk, header.refcount_table_offset + (i + 1) * 8,
                      first + i * header.cluster());
  const double before = seconds_used();
  EXPECT_EQ(check_qcow2(disk).errors, 300u) << "the blocks themselves are not counted";
  EXPECT_LT(seconds_used() - before, 10);
}

// 32 MiB of entries that name one table would be 256 GiB to read.
TEST(Qcow2Format, OneTableIsNotReadAgainAndAgain) {
  const auto disk = make_qcow2(kGiB, {{"cluster_size", "4K"}});
  const Header header = run(read_header(*disk));
  const uint64_t table = round_up(disk->size(), header.cluster());
  disk->set_size(table + header.cluster());
  Bytes entry(8);
  store_be<uint64_t>(entry, 0, table | kCopied);
  for (uint64_t i = 0; i < header.l1_entries; i++) disk->poke(header.l1_offset + i * 8, entry);
  disk->reset_counts();
  EXPECT_GE(check_qcow2(disk).errors, header.l1_entries - 1);
  EXPECT_LT(disk->counts().bytes_read, header.l1_entries * header.cluster() / 2);
}

// A cluster in the middle of a sparse file, that no refcount block is there for.
TEST(Qcow2Format, RefcountsOfHolesAreNotWritten) {
  const auto disk = make_qcow2(
      kMiB, {{"cluster_size", "512"}, {"refcount_bits", "64"}, {"preallocation", "metadata"}});
  const Header header = run(read_header(*disk));
  const Bytes l1 = disk->peek(header.l1_offset, 8);
  disk->set_size(40 * kMiB);
  poke_be<uint64_t>(*disk, load_be<uint64_t>(l1, 0) & kOffsetMask, kCopied | (39 * kMiB));
  EXPECT_GT(check_qcow2(disk).errors, 0u);
  disk->reset_counts();
  check_qcow2(disk, true);
  EXPECT_LT(disk->counts().bytes_written, 64 * kKiB);  // all of them: 640 KiB
  const CheckResult after = check_qcow2(disk);
  EXPECT_EQ(after.errors + after.leaks, 0u) << after.findings.at(0);
  std::string output;
  EXPECT_EQ(qemu_check(*disk, &output), 0) << output;
}

// Refcounts of one bit, and two entries that name one cluster: nothing that repair could write
// makes that right.
TEST(Qcow2Format, WhatRefcountsCannotCountIsNotCalledRepaired) {
  const auto disk =
      make_qcow2(kMiB, {{"refcount_bits", "1"}, {"preallocation", "metadata"}, {"compat", "1.1"}});
  const Header header = run(read_header(*disk));
  const Bytes l1 = disk->peek(header.l1_offset, 8);
  const uint64_t table = load_be<uint64_t>(l1, 0) & kOffsetMask;
  disk->poke(table, disk->peek(table + 8, 8));
  EXPECT_GT(check_qcow2(disk).errors, 0u);
  const CheckResult repaired = check_qcow2(disk, true);
  EXPECT_EQ(repaired.errors, 1u);
  const CheckResult after = check_qcow2(disk);
  EXPECT_EQ(after.errors, 1u);
  const std::string& said = after.findings.back();
  EXPECT_NE(said.find("named 2 times"), std::string::npos) << said;
  EXPECT_EQ(after.leaks, 1u) << "what is damaged may still be needed";
}

// Whatever is in a file: an Error, or bytes; never anything else, and never for long.
TEST(Qcow2Format, DamagedImagesDoNoHarm) {
  const TempFolder folder;
  write_file(folder.path("raw"), pattern(kMiB, 3));
  for (const char* options : {"cluster_size=4k", "cluster_size=16k,extended_l2=on"}) {
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                                  options, folder.path("raw"), folder.path("image")}));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 1 100k 100k", "-c",
                                  "write -z 300k 64k", folder.path("image")}));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-c", "one", folder.path("image")}));
    const auto good = load(folder.path("image"), true);
    Random random(7);
    for (int i = 0; i < 150; i++) {
      const auto disk = good->copy();
      for (uint64_t n = 1 + random() % 3; n > 0; n--) {
        // Mostly where tables are.
        const uint64_t at = random() % 3 ? random() % 128 : random() % (400 * kKiB);
        const Bytes byte(1, std::byte(random()));
        disk->poke(at, byte);
      }
      try {
        (void)check_qcow2(disk->copy(), true);
      } catch (const Error&) {
      }
      try {
        (void)image_bytes(disk);
      } catch (const Error&) {
      }
      try {
        KernelModel kernel(qcow2_opener(disk), 1);
        run(kernel.attach());
        Guest guest(kernel, kernel.image().sectors());
        run(guest.write({random() % 2000, 30}));
        run(guest.flush());
      } catch (const Error&) {
      } catch (const std::logic_error& error) {
        FAIL() << error.what();
      }
    }
  }
}

// A page of 4 KiB says where 8 MiB are, and a table where 32 MiB are.
TEST(Qcow2Format, ARunIsOneAnswer) {
  TempFolder folder;
  const std::string path = folder.path("image");
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                "cluster_size=16k,preallocation=metadata", path, "31M"}));
  const std::unique_ptr<Image> image = run(open(qcow2_request(load(path, false), nullptr)));
  const std::vector<MapEntry> map = run(image->map({0, image->sectors()}));
  ASSERT_EQ(map.size(), 1u);
  const std::vector<Answer> answers = run(image->resolve({16, 8}, Access::read));
  ASSERT_EQ(answers.size(), 1u);
  const auto& extent = std::get<Extent>(answers[0]);
  EXPECT_EQ(extent.range, (Range{16, image->sectors() - 16}));
  EXPECT_EQ(extent.write, extent.read);
}

TEST(Qcow2Format, MemoryIsBounded) {
  TempFolder folder;
  const std::string path = folder.path("image");
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                "cluster_size=512,preallocation=metadata", path, "2M"}));
  OpenRequest request = qcow2_request(load(path, false), nullptr);
  request.metadata_cache = 16 << 10;
  const std::unique_ptr<Image> image = run(open(request));
  run(image->map({0, image->sectors()}));
  EXPECT_EQ(image->stats().at("pages-cached"), 32);
}

}  // namespace
}  // namespace cowd::qcow2
