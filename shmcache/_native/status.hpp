// Result codes of the core. The core never throws across a file; bind.cpp turns every code
// into exactly one Python exception (a test compares the two lists).
#pragma once

#include <cstdint>

namespace shmcache {

enum class Status : uint8_t {
  kOk,
  kMiss,          // no such key
  kEmpty,         // nothing in the queue, or nothing changed, before the deadline
  kInterrupted,   // a signal arrived while waiting: handle it and call again
  kShutDown,      // the queue was shut down and is empty
  kExists,        // somebody else has initialised this segment
  kBusy,          // somebody else is initialising this segment right now
  kUnfinished,    // its creator died before it was ready
  kTooSmall,      // capacity below the least that holds the fixed parts
  kTooBig,        // capacity above what the file system or the layout can hold
  kArenaFull,     // the committed bytes would pass the capacity
  kNoSpace,       // the file system (or the process's file size limit) gives no more pages
  kKeySize,       // a key of 0 bytes or of more than kMaxKeySize
  kPriority,      // the priority function gave what is no priority
  kReindexed,     // the arena has other secondary indexes than these terms were made for
  kReadOnly,      // a write through a handle without write access
  kLockTimeout,   // a living process holds the lock
  kNoSlot,        // every owner slot belongs to a living process
  kClosed,        // the handle is closed
  kSuperseded,    // another arena has the name by now
  kForeign,       // not a segment of ours
  kWrongLayout,   // ours, of another layout version or machine
  kWrongKind,     // a Store where a FIFO was asked for, or the like
  kWrongCodec,    // its payloads are of another codec
  kInsecure,      // owner, mode, type or link count are not what they must be
  kCorrupt,       // an invariant is broken
  kLost,          // pages of the file are gone: somebody truncated it
  kNoMemory,      // private memory for a repair or a copy
  kSystem,        // errno says
};

}  // namespace shmcache
