// SPDX-License-Identifier: GPL-2.0-or-later
// A tree of files as text, one line a name, for diff.
#pragma once

#include <string>

// Prints every name under `root`, sorted, with type, mode, owner, links, size, time
// of modification, xattrs and a checksum of the content or the target of the symlink.
// Throws std::system_error.
void print_tree(const std::string& root);
