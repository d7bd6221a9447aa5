// SPDX-License-Identifier: GPL-2.0-or-later
// Metadata that takes the place of an image's own at once: shadow paging. For what changes many
// refcounts and COPIED flags together, of an image that nobody serves.
//
// Nothing that the header leads to is ever written to. What changes is written to clusters that
// are free: tables, and also the refcount blocks and the refcount table that count all of it
// as it will be. Then:
//   1. flush
//   2. the header, one block, names the new L1 table, refcount table and snapshot table; flush
//   3. the file is cut behind what is in use
// A crash before 2 leaves the old image, and after it the new one: no errors and no leaks. Writing
// in place could not do that, for a cluster's refcount and its COPIED flag are far apart.
//
// Memory: 4 bytes for each host cluster whose refcount changes, kMetadataCache of pages, the L1
// tables.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "formats/common/bytes.hh"
#include "formats/plugin.hh"
#include "formats/qcow2/deltas.hh"
#include "formats/qcow2/layout.hh"
#include "formats/qcow2/pages.hh"
#include "formats/qcow2/refcounts.hh"

namespace cowd::qcow2 {

// The header of an image that is to be changed as a whole; refuses what cannot be. Refcounts
// that are not up to date (the dirty bit) are made anew.
Task<Header> header_to_change(Disk& disk);

class Shadow {
 public:
  // All outlive it. Progress is told for each of `steps` L2 tables.
  Shadow(Disk& disk, const Header& header, const Progress& progress);

  // First. `clusters`: how many are claimed at most, without refcounts; a file is made
  // longer for them. `steps`: how many L2 tables will be walked.
  Task<> begin(uint64_t clusters, uint64_t steps);

  // Adds `by` to what an L1 table names: its L2 tables and all that they name.
  Task<> count(const std::vector<uint64_t>& l1, int32_t by);
  Task<> count_table(uint64_t l1_entry, uint64_t index, int32_t by);
  Task<> count_entry(const Entry& entry, int32_t by);
  void count_bytes(uint64_t offset, uint64_t bytes, int32_t by);

  // Clusters in a row for so many bytes, counted once each; the offset.
  Task<uint64_t> place(uint64_t bytes);
  // The same, and writes them there; zeroes behind.
  Task<uint64_t> put(std::span<const std::byte> bytes);
  Task<uint64_t> put_l1(const std::vector<uint64_t>& l1);

  // Sets the COPIED flags of an L1 table and of the tables it names by what the refcounts will
  // be. `names`: how many L1 tables that are written now name the same tables.
  Task<> set_copied(std::vector<uint64_t>& l1, int32_t names);

  // The header as it will be; but for the refcount table.
  Header next;

  Task<> finish();
  // After a failure: a file gets its length back, if that cannot harm.
  Task<> abandon();

 private:
  Task<> protect_tables();
  Task<> require_counted(uint64_t cluster);
  Task<uint64_t> refcount(uint64_t cluster);
  Task<uint64_t> copied_in_table(uint64_t table, uint64_t first, int32_t names);
  Task<bool> flags_in(Buffer& table, uint64_t first);
  Task<> place_refcounts();
  Task<> write_refcounts();
  Task<> write_block(uint64_t block, uint64_t at);
  Task<> cut();
  void step();
  uint64_t clusters_for(uint64_t bytes) const {
    return (bytes + header_.cluster() - 1) >> header_.cluster_bits;
  }

  Disk& disk_;
  Header header_;  // as it is
  const Progress& progress_;
  Pages pages_;
  Refcounts refcounts_;
  Deltas deltas_;
  std::vector<uint64_t> table_;          // of refcounts, as it will be
  std::map<uint64_t, uint64_t> blocks_;  // index to the host cluster of the new block
  HostRun table_place_;                  // of the new table
  uint64_t length_ = 0;                  // of the file before
  bool switching_ = false;               // the header may be the new one
  uint64_t done_ = 0, steps_ = 0;
};

}  // namespace cowd::qcow2
