// SPDX-License-Identifier: GPL-2.0-or-later
// What images of each format in real folders name is opened by the rules of
// docs/references.md: with the plugins as cowd loads them, and the files as they would be.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "cowd/core/image_io.hh"
#include "cowd/core/references.hh"
#include "cowd/core/run.hh"

namespace {

using namespace cowd;
namespace fs = std::filesystem;

constexpr size_t kLocator = 512 + 576, kPath = 1536;  // in a VHD that we made

class NamedImages : public ::testing::Test {
 protected:
  NamedImages()
      : folder_(fs::temp_directory_path() / ("named." + std::to_string(getpid()))),
        inside_(folder_ / "images") {
    fs::create_directories(inside_);
    write(folder_ / "secret", std::string(65536, 's'));
    write(inside_ / "flat", std::string(65536, 'f'));
    fs::create_symlink("flat", inside_ / "link");
    EXPECT_EQ(mkfifo((inside_ / "pipe").c_str(), 0600), 0);
  }
  ~NamedImages() override {
    set_reference_roots({});
    fs::remove_all(folder_);
  }

  static void write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  static std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::shared_ptr<FileReferences> references(const std::string& format, const fs::path& path,
                                             const std::shared_ptr<Disk>& top) {
    return std::make_shared<FileReferences>(io_, &plugins_, FileReferences::Purpose::tool,
                                            parse_spec(format + ":" + path.string()).top, top);
  }

  // Why it is not opened; "": it is. The sentence has its name in it, or `words`.
  std::string refusal(const std::string& format, const std::string& name, int code,
                      const std::string& words = "") {
    const fs::path path = inside_ / name;
    OpenRequest request;
    request.top = BlockDisk::open(io_, path, BlockDisk::Open::read_only);
    request.read_only = true;
    request.references = references(format, path, request.top);
    try {
      run_to_end(loop_, plugins_.load(format).open(std::move(request)));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      const std::string said = error.what();
      EXPECT_NE(said.find(words.empty() ? name : words), std::string::npos) << said;
      return said;
    }
    return "";
  }

  void make(const std::string& format, const std::string& name, Options options, uint64_t size,
            std::shared_ptr<Disk> base = nullptr) {
    const fs::path path = inside_ / name;
    const auto store_size = plugins_.load(format).store_size;
    write(path, std::string(store_size ? store_size(size, options) : 4096, '\0'));
    CreateRequest request;
    request.top = BlockDisk::open(io_, path, BlockDisk::Open::writable);
    request.base = std::move(base);
    request.size = size;
    request.options = std::move(options);
    request.force = true;
    const auto chain = references(format, path, request.top);
    request.references = chain;
    run_to_end(loop_, plugins_.load(format).create(std::move(request)));
    chain->keep_made();
  }

  void vmdk(const std::string& name, const std::string& extent, const std::string& parent = "") {
    write(inside_ / name, "# Disk DescriptorFile\nversion=1\nCID=11111111\nparentCID=" +
                              std::string(parent.empty() ? "ffffffff" : "11111111") +
                              "\ncreateType=\"monolithicFlat\"\nparentFileNameHint=\"" + parent +
                              "\"\nRW 128 FLAT \"" + extent + "\" 0\n" + std::string(4096, '\n'));
  }

  // `image`, a differencing one, lies on something else now.
  static std::string with_parent(std::string image, const std::string& parent) {
    const auto put = [&image](size_t at, size_t value) {
      for (size_t i = 0; i < 4; i++) image[at + i] = static_cast<char>(value >> (24 - 8 * i));
    };
    std::string path(512, '\0');
    for (size_t i = 0; i < parent.size(); i++) path[2 * i] = parent[i] == '/' ? '\\' : parent[i];
    image.replace(kPath, path.size(), path);
    put(kLocator + 8, parent.size() * 2);
    put(512 + 36, 0);
    uint32_t sum = 0;
    for (size_t i = 512; i < 1536; i++) sum += static_cast<unsigned char>(image[i]);
    put(512 + 36, ~sum);
    return image;
  }

  // Each name that must not be followed, with the errno and words of its refusal.
  template <typename Refused>
  void each_bad_name(const std::string& self, Refused refused) {
    EXPECT_NE(refused("/etc/shadow", EPERM).find("outside of the folders"), std::string::npos);
    EXPECT_NE(refused("/dev/sda", EPERM).find("outside of the folders"), std::string::npos);
    EXPECT_NE(refused("../secret", EPERM).find("outside of the folders"), std::string::npos);
    EXPECT_NE(refused("link", EPERM).find("symbolic link"), std::string::npos);
    EXPECT_NE(refused("pipe", EPERM).find("no regular file"), std::string::npos);
    EXPECT_NE(refused("nowhere", ENOENT).find("does not exist"), std::string::npos);
    EXPECT_NE(refused(self, ELOOP).find("cannot lie on itself"), std::string::npos);
    set_reference_roots({"/dev"});
    EXPECT_NE(refused("/dev/null", EPERM).find("no regular file"), std::string::npos);
    set_reference_roots({});
  }

  // The last of a thousand, i1 to i1000, each on the one before it.
  void expect_refused_soon(const std::string& format) {
    const auto begin = std::chrono::steady_clock::now();
    const fs::path path = inside_ / "i1000";
    OpenRequest request;
    request.top = BlockDisk::open(io_, path, BlockDisk::Open::read_only);
    request.read_only = true;
    request.references = references(format, path, request.top);
    std::string said;
    try {
      run_to_end(loop_, plugins_.load(format).open(std::move(request)));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), EMLINK);
      said = error.what();
    }
    // The top and 62 beneath it.
    EXPECT_NE(said.find("i938 names 'i937', and that is one file too many"), std::string::npos)
        << said;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
    EXPECT_EQ(refusal(format, "i62", 0), "");
  }

  boost::asio::io_context loop_;
  std::shared_ptr<AsyncIo> io_ = make_async_io(loop_);
  PluginLoader plugins_{{"build/plugins"}};
  const fs::path folder_, inside_;
};

TEST_F(NamedImages, ExtentsOfAVmdk) {
  each_bad_name("top.vmdk", [this](const std::string& name, int code) {
    vmdk("top.vmdk", name);
    return refusal("vmdk", "top.vmdk", code);
  });
  vmdk("top.vmdk", "flat");
  EXPECT_EQ(refusal("vmdk", "top.vmdk", 0), "");
}

TEST_F(NamedImages, TheParentOfAVmdk) {
  each_bad_name("top.vmdk", [this](const std::string& name, int code) {
    vmdk("top.vmdk", "flat", name);
    return refusal("vmdk", "top.vmdk", code);
  });
}

TEST_F(NamedImages, TheParentOfAVhd) {
  make("vhd", "base.vhd", {}, 1 << 20);
  make("vhd", "child.vhd", {{"type", "differencing"}, {"parent", "base.vhd"}}, 0);
  EXPECT_EQ(refusal("vhd", "child.vhd", 0), "");
  const std::string child = read(inside_ / "child.vhd");
  each_bad_name("child.vhd", [&](const std::string& name, int code) {
    write(inside_ / "child.vhd", with_parent(child, name));
    return refusal("vhd", "child.vhd", code);
  });
}

// Bytes of a name that any other one fits in the place of.
constexpr size_t kNameRoom = 14;

// `image`, a qcow2 of ours, names something else now, where it names `old`.
std::string with_name(std::string image, const std::string& old, const std::string& name,
                      size_t length_at) {
  image.replace(image.find(old), kNameRoom, name + std::string(kNameRoom - name.size(), '\0'));
  image[length_at] = static_cast<char>(name.size());
  return image;
}

TEST_F(NamedImages, TheBackingFileOfAQcow2) {
  const std::string old(kNameRoom, 'o');
  write(inside_ / old, std::string(65536, 'o'));
  make("qcow2", "top.qcow2", {{"backing_file", old}, {"backing_fmt", "raw"}}, 65536);
  const std::string image = read(inside_ / "top.qcow2");
  const auto refused = [&](const std::string& name, int code) {
    write(inside_ / "top.qcow2", with_name(image, old, name, 19));
    return refusal("qcow2", "top.qcow2", code);
  };
  each_bad_name("top.qcow2", refused);
  EXPECT_NE(refused("json:{}", EPERM).find("no plain path"), std::string::npos);
  EXPECT_EQ(refused("flat", 0), "");
}

// Its header extension has the length in front of the name.
TEST_F(NamedImages, TheDataFileOfAQcow2) {
  const std::string old(kNameRoom, 'o');
  write(inside_ / old, std::string(65536, 'o'));
  make("qcow2", "top.qcow2", {{"data_file", old}}, 65536);
  const std::string image = read(inside_ / "top.qcow2");
  const size_t length_at = image.find(old) - 1;
  each_bad_name("top.qcow2", [&](const std::string& name, int code) {
    write(inside_ / "top.qcow2", with_name(image, old, name, length_at));
    return refusal("qcow2", "top.qcow2", code);
  });
}

// `image`, a qcow of ours on a raw file, names something else now; its format stands behind the
// name, or nowhere.
std::string with_name_and_format(const std::string& image, const std::string& old,
                                 const std::string& name, const std::string& format) {
  std::string named = image;
  std::string text = name + format;
  text.resize(old.size() + 3);
  named.replace(named.find(old), text.size(), text);
  named[19] = static_cast<char>(name.size());
  named[35] = static_cast<char>(format.size());
  return named;
}

TEST_F(NamedImages, TheBackingFileOfAQcow) {
  const std::string old(kNameRoom, 'o');
  write(inside_ / old, std::string(65536, 'o'));
  make("qcow", "top.qcow", {{"backing_file", old}, {"backing_fmt", "raw"}}, 65536);
  const std::string image = read(inside_ / "top.qcow");
  for (const std::string format : {"", "raw", "qcow"}) {
    const auto refused = [&](const std::string& name, int code) {
      write(inside_ / "top.qcow", with_name_and_format(image, old, name, format));
      return refusal("qcow", "top.qcow", code);
    };
    each_bad_name("top.qcow", refused);
    EXPECT_NE(refused("json:{}", EPERM).find("no plain path"), std::string::npos);
    if (format == "qcow") continue;
    EXPECT_EQ(refused("flat", 0), "");
  }
  for (const std::string format : {"luks", "../qcow", "\x01"}) {
    write(inside_ / "top.qcow", with_name_and_format(image, old, "flat", format));
    EXPECT_NE(refusal("qcow", "top.qcow", ENOENT, "no format"), "");
  }
}

// A store says what its base is, and nobody else does for one that lies beneath an image.
TEST_F(NamedImages, TheBaseOfADscowBeneathAQcow2) {
  const std::vector<std::byte> filled(3 << 20, std::byte{'b'});
  write(inside_ / "base", std::string(filled.size(), 'b'));
  const auto base = BlockDisk::open(io_, inside_ / "base", BlockDisk::Open::read_only);
  make("dscow", "store", {}, 4 << 20, base);
  make("qcow2", "top", {{"backing_file", "store"}, {"backing_fmt", "dscow"}}, 4 << 20);
  std::vector<std::byte> wanted = filled, found(4 << 20);
  wanted.resize(found.size());
  {
    OpenRequest request;
    request.top = BlockDisk::open(io_, inside_ / "store", BlockDisk::Open::writable);
    request.host_id = request.boot_id = "here";
    request.base = base;
    const auto store = run_to_end(loop_, plugins_.load("dscow").open(std::move(request)));
    ImageIo io(*store);
    const std::vector<std::byte> some(100 << 9, std::byte{'s'});
    run_to_end(loop_, io.write({77, 100}, some));
    std::ranges::copy(some, wanted.begin() + (77 << 9));
    run_to_end(loop_, io.commit());
    run_to_end(loop_, store->close());
  }
  OpenRequest request;
  request.top = BlockDisk::open(io_, inside_ / "top", BlockDisk::Open::read_only);
  request.read_only = true;
  request.references = references("qcow2", inside_ / "top", request.top);
  const auto top = run_to_end(loop_, plugins_.load("qcow2").open(std::move(request)));
  EXPECT_EQ(top->destinations().size(), 3u);
  ImageIo io(*top);
  run_to_end(loop_, io.read({0, found.size() >> 9}, found));
  EXPECT_TRUE(found == wanted);
}

TEST_F(NamedImages, TheBaseThatADscowNames) {
  const auto base = BlockDisk::open(io_, inside_ / "flat", BlockDisk::Open::read_only);
  make("dscow", "store", {}, 65536, base);
  make("qcow2", "top", {{"backing_file", "store"}, {"backing_fmt", "dscow"}}, 65536);
  each_bad_name("top", [&](const std::string& name, int code) {
    base->set_name(name);
    make("dscow", "store", {}, 65536, base);
    return refusal("qcow2", "top", code, "store names '" + name);
  });
}

TEST_F(NamedImages, AThousandQcow2AreTooMany) {
  const std::string old(kNameRoom, 'o');
  make("qcow2", "base", {}, 65536);
  make("qcow2", old, {}, 65536);
  make("qcow2", "first", {{"backing_file", old}, {"backing_fmt", "qcow2"}}, 65536);
  const std::string image = read(inside_ / "first");
  for (int i = 1; i <= 1000; i++) {
    const std::string parent = i == 1 ? "base" : "i" + std::to_string(i - 1);
    write(inside_ / ("i" + std::to_string(i)), with_name(image, old, parent, 19));
  }
  expect_refused_soon("qcow2");
}

TEST_F(NamedImages, AThousandQcowAreTooMany) {
  const std::string old(kNameRoom, 'o');
  make("qcow", "base", {}, 65536);
  write(inside_ / old, std::string(65536, 'o'));
  make("qcow", "first", {{"backing_file", old}, {"backing_fmt", "raw"}}, 65536);
  const std::string image = read(inside_ / "first");
  for (int i = 1; i <= 1000; i++) {
    const std::string parent = i == 1 ? "base" : "i" + std::to_string(i - 1);
    write(inside_ / ("i" + std::to_string(i)), with_name_and_format(image, old, parent, "qcow"));
  }
  expect_refused_soon("qcow");
}

TEST_F(NamedImages, AThousandVmdkAreTooMany) {
  make("vmdk", "base", {}, 65536);
  const std::string base = read(inside_ / "base");
  const size_t cid = base.find("CID=") + 4;
  for (int i = 1; i <= 1000; i++) {
    const std::string parent = i == 1 ? "base" : "i" + std::to_string(i - 1);
    std::string image = base;
    image.replace(base.find("ffffffff"), 8, base.substr(cid, 8));
    const std::string hint = "parentFileNameHint=\"" + parent + "\"\n";
    image.replace(image.find("# The Disk"), hint.size(), hint);
    write(inside_ / ("i" + std::to_string(i)), image);
  }
  expect_refused_soon("vmdk");
}

TEST_F(NamedImages, AThousandVhdAreTooMany) {
  make("vhd", "base", {}, 1 << 20);
  make("vhd", "i1", {{"type", "differencing"}, {"parent", "base"}}, 0);
  std::string image = read(inside_ / "i1");
  // All have one name for themselves, so each is the parent of the next.
  const std::string base = read(inside_ / "base");
  const std::string uuid = base.substr(68, 16);
  for (const size_t at : {size_t{0}, image.size() - 512}) {
    image.replace(at + 68, 16, uuid);
    image.replace(at + 64, 4, 4, '\0');
    uint32_t sum = 0;
    for (size_t i = at; i < at + 512; i++) sum += static_cast<unsigned char>(image[i]);
    for (size_t i = 0; i < 4; i++) image[at + 64 + i] = static_cast<char>(~sum >> (24 - 8 * i));
  }
  for (int i = 1; i <= 1000; i++)
    write(inside_ / ("i" + std::to_string(i)),
          with_parent(image, i == 1 ? "base" : "i" + std::to_string(i - 1)));
  expect_refused_soon("vhd");
}

}  // namespace
