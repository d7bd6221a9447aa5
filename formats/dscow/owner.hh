// SPDX-License-Identifier: GPL-2.0-or-later
// Who may write a store.
//
//   owner in the header        attach                      verdict
//   nobody                     any                         take
//   this host, this boot       again after a restart       keep
//   this host, this boot       any other                   EBUSY: attached twice
//   this host, another boot    any                         take: our own crash
//   another host               any                         EBUSY
//
// Taking is: write the header with our name, a new nonce and epoch + 1; flush;
// read both copies again. If the header in force is not the one written, another
// host was faster and has the store. Two hosts can both read "nobody"; the
// one that wrote last then wins and the other finds out, unless its second read
// was done before the winner's write. That is why hosts that share a store need
// something above us that attaches at one of them at a time; what is
// here tells its mistakes.
#pragma once

#include <string>

#include "formats/dscow/headers.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

enum class Claim { take, keep };

// Throws EBUSY with a sentence where the table says so.
Claim judge_owner(const std::string& store, const Header& header, const OpenRequest& request);

// This host, with a nonce of its own for each take-over. Throws EINVAL if it has no name.
Owner make_owner(const OpenRequest& request);

// Makes the store `ours`, durably, and sets its mode.
Task<> take_over(Disk& disk, Headers& headers, const Owner& ours, Mode mode);

// After a failure in or behind take_over(): gives the store up again if it is ours
// on disk, lest the next attempt find it attached. Throws nothing.
Task<> abandon(Disk& disk, const Owner& ours);

// Gives it up, durably: nobody's, and clean. Throws ESTALE if it is not ours any more.
Task<> release(Disk& disk, Headers& headers);

}  // namespace cowd::dscow
