// SPDX-License-Identifier: GPL-2.0-or-later
// Pages of tables, L2 and refcounts: at most OpenRequest.metadata_cache bytes.
#pragma once

#include "formats/common/table_cache.hh"

namespace cowd::qcow2 {

using Pages = TableCache;
using PagePtr = TablePtr;

}  // namespace cowd::qcow2
