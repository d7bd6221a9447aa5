// SPDX-License-Identifier: GPL-2.0-or-later
// What an image names is opened by the rules of docs/references.md, and nothing else is.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <fstream>

#include "cowd/core/file_length.hh"
#include "cowd/core/references.hh"
#include "cowd/core/run.hh"

namespace {

using namespace cowd;
namespace fs = std::filesystem;

class References : public ::testing::Test {
 protected:
  References()
      : folder_(fs::temp_directory_path() / ("references." + std::to_string(getpid()))),
        inside_(folder_ / "images"),
        outside_(folder_ / "elsewhere") {
    fs::create_directories(inside_ / "below");
    fs::create_directories(outside_);
    write(inside_ / "top", 4096);
    write(inside_ / "below" / "base", 8192);
    write(outside_ / "secret", 4096);
  }
  ~References() override {
    set_reference_roots({});
    fs::remove_all(folder_);
  }

  static void write(const fs::path& path, size_t size) {
    std::ofstream(path) << std::string(size, 'x');
  }

  std::shared_ptr<FileReferences> references(const fs::path& top) {
    io_ = make_async_io(loop_);
    top_ = BlockDisk::open(io_, top, BlockDisk::Open::read_only);
    return std::make_shared<FileReferences>(io_, &plugins_, FileReferences::Purpose::tool,
                                            parse_spec("raw:" + top.string()).top, top_);
  }
  std::shared_ptr<FileReferences> references() { return references(inside_ / "top"); }

  // "": it was opened.
  std::string refusal(const std::shared_ptr<FileReferences>& chain, const std::string& path,
                      int code, bool writable = false) {
    try {
      last_ = run_to_end(loop_, chain->disk(*top_, path, writable));
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(top_->name()), std::string::npos) << error.what();
      return error.what();
    }
  }
  std::string refusal(const std::string& path, int code) {
    return refusal(references(), path, code);
  }

  boost::asio::io_context loop_;
  std::shared_ptr<AsyncIo> io_;
  PluginLoader plugins_{{"build/plugins"}};
  const fs::path folder_, inside_, outside_;
  std::shared_ptr<BlockDisk> top_;
  std::shared_ptr<Disk> last_;
};

TEST_F(References, ARelativePathBeginsAtTheImagesFolder) {
  ASSERT_EQ(refusal("below/base", 0), "");
  EXPECT_EQ(last_->size(), 8192U);
  EXPECT_EQ(last_->name(), inside_ / "below" / "base");
  EXPECT_TRUE(last_->read_only());
}

TEST_F(References, EachMemberOfAChainHasItsOwnFolder) {
  write(inside_ / "below" / "next", 512);
  auto chain = references();
  const auto base = run_to_end(loop_, chain->disk(*top_, "below/base", false));
  const auto next = run_to_end(loop_, chain->disk(*base, "next", false));
  EXPECT_EQ(next->name(), inside_ / "below" / "next");
}

TEST_F(References, AnAbsolutePathMustLieBeneathTheFolderOrARoot) {
  EXPECT_EQ(refusal((inside_ / "below" / "base").string(), 0), "");
  const std::string secret = (outside_ / "secret").string();
  EXPECT_NE(refusal(secret, EPERM).find("reference_roots"), std::string::npos);
  EXPECT_NE(refusal("/etc/shadow", EPERM), "");
  set_reference_roots({outside_});
  EXPECT_EQ(refusal(secret, 0), "");
  EXPECT_NE(refusal((outside_ / ".." / "elsewhere" / ".." / "images" / "top").string(), EPERM), "");
}

TEST_F(References, NothingLeadsOut) {
  EXPECT_NE(refusal("../elsewhere/secret", EPERM), "");
  EXPECT_NE(refusal("below/../../elsewhere/secret", EPERM), "");
  fs::create_symlink(outside_ / "secret", inside_ / "link");
  fs::create_symlink(inside_ / "below" / "base", inside_ / "harmless");
  fs::create_directory_symlink(outside_, inside_ / "folder");
  EXPECT_NE(refusal("link", EPERM).find("symbolic link"), std::string::npos);
  EXPECT_NE(refusal("harmless", EPERM).find("symbolic link"), std::string::npos);
  EXPECT_NE(refusal("folder/secret", EPERM).find("symbolic link"), std::string::npos);
}

TEST_F(References, OnlyRegularFilesAreOpened) {
  ASSERT_EQ(mkfifo((inside_ / "pipe").c_str(), 0600), 0);
  EXPECT_NE(refusal("pipe", EPERM).find("no regular file"), std::string::npos);
  EXPECT_NE(refusal("below", EPERM).find("no regular file"), std::string::npos);
  set_reference_roots({"/dev"});
  EXPECT_NE(refusal("/dev/null", EPERM).find("no regular file"), std::string::npos);
}

TEST_F(References, WhatIsNoPlainPathIsRefused) {
  for (const char* path :
       {"json:{\"driver\":\"raw\"}", "nbd://host/export", "nbd:unix:/x", "file:base"})
    EXPECT_NE(refusal(path, EPERM).find("no plain path"), std::string::npos) << path;
  EXPECT_NE(refusal("", EINVAL), "");
  EXPECT_NE(refusal(std::string("below/base\0x", 12), EINVAL), "");
  write(inside_ / "below" / "a:b", 512);
  EXPECT_EQ(refusal("below/a:b", 0), "");
}

TEST_F(References, AMissingOrEmptyFileIsRefused) {
  EXPECT_NE(refusal("below/none", ENOENT).find("does not exist"), std::string::npos);
  write(inside_ / "nothing", 0);
  EXPECT_NE(refusal("nothing", EINVAL).find("is empty"), std::string::npos);
}

TEST_F(References, AnImageCannotLieOnItself) {
  EXPECT_NE(refusal("top", ELOOP).find("part of the same disk"), std::string::npos);
  fs::create_hard_link(inside_ / "top", inside_ / "other-name");
  EXPECT_NE(refusal("other-name", ELOOP), "");
  auto chain = references();
  EXPECT_EQ(refusal(chain, "below/base", 0), "");
  EXPECT_NE(refusal(chain, "below/base", ELOOP), "");
}

TEST_F(References, AChainHasAnEnd) {
  auto chain = references();
  for (size_t i = 0; i < FileReferences::kMostFiles; ++i) {
    const std::string name = "member" + std::to_string(i);
    write(inside_ / name, 512);
    ASSERT_EQ(refusal(chain, name, 0), "");
  }
  write(inside_ / "more", 512);
  EXPECT_NE(refusal(chain, "more", EMLINK).find("one file too many"), std::string::npos);
}

TEST_F(References, AnImageBeneathNeedsAFormat) {
  auto chain = references();
  try {
    run_to_end(loop_, chain->image(*top_, "below/base", ""));
    ADD_FAILURE() << "was opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(std::string(error.what()).find("-F FORMAT"), std::string::npos) << error.what();
  }
  const auto image = run_to_end(loop_, chain->image(*top_, "below/base", "raw"));
  EXPECT_EQ(image->sectors(), 16U);
}

// As the specification is the operator's.
TEST_F(References, TheTopItselfMayBeALink) {
  fs::create_symlink(inside_ / "top", outside_ / "top");
  auto chain = references(outside_ / "top");
  EXPECT_EQ(refusal(chain, "below/base", 0), "");
}

TEST_F(References, AFileThatEndsWithinASectorGoesOnWithZeroes) {
  write(inside_ / "odd", 1000);
  auto chain = references();
  ASSERT_EQ(refusal(chain, "odd", 0), "");
  ASSERT_GE(last_->size(), 1024U);
  std::vector<std::byte> bytes(last_->size());
  run_to_end(loop_, last_->read_at(0, bytes));
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{'x'}), 1000);
  EXPECT_EQ(bytes[1000], std::byte{0});
  write(inside_ / "odd-too", 1000);
  EXPECT_THROW(run_to_end(loop_, chain->image(*top_, "odd-too", "raw")), Error);
}

TEST_F(References, AFileThatGrowsIsCut) {
  auto chain = references();
  const cowd::References::Room room = [](std::shared_ptr<Disk> disk) -> Task<uint64_t> {
    co_return disk->size() + 4096;
  };
  const auto grown = run_to_end(loop_, chain->growing(*top_, "below/base", room));
  EXPECT_FALSE(grown->read_only());
  chain->cut(grown.get(), 1 << 20);
  EXPECT_EQ(fs::file_size(inside_ / "below" / "base"), 8192U);
  chain->cut(grown.get(), 4096);
  EXPECT_EQ(fs::file_size(inside_ / "below" / "base"), 4096U);
  chain->cut(top_.get(), 512);
  EXPECT_EQ(fs::file_size(inside_ / "top"), 4096U);
}

TEST_F(References, AFileThatIsMadeGoesUnlessItIsKept) {
  const auto made = [&](const std::string& name, bool force, bool keep) -> std::string {
    auto chain = references();
    try {
      const auto disk = run_to_end(loop_, chain->make(*top_, name, force));
      run_to_end(loop_, disk->resize(8192));
      EXPECT_EQ(fs::file_size(inside_ / name), 8192U);
    } catch (const Error& error) {
      return error.what();
    }
    if (keep) chain->keep_made();
    return "";
  };
  EXPECT_EQ(made("new", false, false), "");
  EXPECT_FALSE(fs::exists(inside_ / "new"));
  EXPECT_EQ(made("new", false, true), "");
  EXPECT_TRUE(fs::exists(inside_ / "new"));
  EXPECT_NE(made("new", false, true).find("--force"), std::string::npos);
  EXPECT_EQ(made("new", true, false), "");
  EXPECT_TRUE(fs::exists(inside_ / "new")) << "it was there before";
  fs::create_symlink(outside_ / "secret", inside_ / "link");
  for (const char* name : {"link", "below/new", "../new", "/tmp/new", ""})
    EXPECT_NE(made(name, true, true), "") << name;
  EXPECT_EQ(fs::file_size(outside_ / "secret"), 4096U);
}

TEST_F(References, WhatNobodyWroteIsCutAgain) {
  const std::string path = inside_ / "top";
  const int fd = open(path.c_str(), O_RDWR);
  ASSERT_EQ(ftruncate(fd, 1 << 20), 0);
  EXPECT_EQ(cut_unwritten(fd, 4096), 0);
  EXPECT_EQ(fs::file_size(path), 4096U);
  ASSERT_EQ(ftruncate(fd, 1 << 20), 0);
  ASSERT_EQ(pwrite(fd, "x", 1, 70000), 1);
  EXPECT_EQ(cut_unwritten(fd, 4096), 0);
  EXPECT_EQ(fs::file_size(path), 1U << 20);
  close(fd);
}

TEST_F(References, AWritableFileGrowsAndShrinks) {
  ASSERT_EQ(refusal(references(), "below/base", 0, true), "");
  run_to_end(loop_, last_->resize(65536));
  EXPECT_EQ(last_->size(), 65536U);
  std::vector<std::byte> bytes(4096, std::byte{'y'});
  run_to_end(loop_, last_->write_at(61440, bytes));
  run_to_end(loop_, last_->resize(12288));
  EXPECT_EQ(fs::file_size(inside_ / "below" / "base"), 12288U);
  bytes[0] = std::byte{1};
  run_to_end(loop_, last_->read_at(8192, bytes));
  EXPECT_EQ(bytes[0], std::byte{0});
}

}  // namespace
