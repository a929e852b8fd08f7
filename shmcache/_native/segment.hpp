// The segment of one arena as this process sees it: file, map, committed memory, identity.
//
// Two descriptors, on two open file descriptions:
//   fd       the file, mapped. Used for fallocate only. Never locked, because a byte lock on a
//            mapped description lives as long as any process maps it.
//   lock_fd  the same inode opened anew, never mapped, close-on-exec. It carries the byte locks
//            (open file description locks) that tell the others that this process lives: the
//            kernel drops them when the process ends, however it ends, and not before.
//
// Byte locks, at offsets far beyond any file size:
//   kInitByte      write: who initialises the segment
//   kAttachByte    read: every attached handle, so whether anybody is attached is one question
//                  to the kernel, and how many is a count in /proc/locks
//   kReflectorByte write: the one reflector that fills the arena
//   kOwnerBytes+i  write: the owner of slot i
//
// fork: the child inherits lock_fd, and with it the parent's locks. An atfork handler closes it
// in the child and opens a new one, so that the parent's death stays visible; the child claims a
// slot of its own when it first needs one. The map is inherited and stays as it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bus_error.hpp"
#include "layout.hpp"
#include "status.hpp"

namespace shmcache {

constexpr uint64_t kInitByte = uint64_t{1} << 61;
constexpr uint64_t kAttachByte = kInitByte + 1;
constexpr uint64_t kReflectorByte = kInitByte + 2;
constexpr uint64_t kOwnerBytes = kInitByte + 4096;

// What a failed create or attach found, for the error message.
struct Finding {
  int error = 0;  // errno
  Kind kind{};
  uint32_t layout = 0;
  char codec[kCodecNameSize] = {};
  uint64_t wanted = 0, available = 0;  // bytes
  uint32_t uid = 0, mode = 0;
};

// No such user: nobody is trusted beside ourselves and root.
constexpr uint32_t kNobody = ~uint32_t{0};

class Segment {
 public:
  // Turn an empty (or half-made) file into a segment with permission bits `mode`. `fd` stays the
  // caller's. `shm_name` is the name that it was opened by. If that fails for want of memory,
  // the name is unlinked while we still hold the initialiser's lock, so nobody else can have made
  // a segment of it. `indexes`: the names of an Indexer's first secondary indexes, at most
  // kMaxIndexes of less than kIndexNameSize bytes. `max_attempts`: of the items of a FIFO.
  static Status create(int fd, const char* shm_name, Kind kind, uint64_t capacity,
                       std::string_view codec, uint32_t mode,
                       const std::vector<std::string>& indexes, uint64_t max_attempts,
                       std::unique_ptr<Segment>& out, Finding& finding);
  // `trusted_uid`: whose file is accepted beside our own and root's, or kNobody.
  static Status attach(int fd, const char* shm_name, Kind kind, std::string_view codec,
                       bool writable, uint32_t trusted_uid, std::unique_ptr<Segment>& out,
                       Finding& finding);
  // Read the header of any file, without attaching. `in_use`: a living process is attached.
  static Status inspect(int fd, Finding& finding, uint64_t& capacity, bool& in_use);
  // Tell who is attached that the name is about to go. Nothing happens to a file that is not ours.
  static void mark_unlinked(int fd);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  bool writable() const { return writable_; }
  Kind kind() const { return kind_; }
  uint64_t capacity() const { return capacity_; }
  const Geometry& geometry() const { return geometry_; }
  const SipHash13& hash() const { return hash_; }

  Header& header() const { return *at<Header>(0); }
  Control& control() const { return *at<Control>(geometry_.control); }
  OwnerSlot& slot(uint32_t number) const { return control().slots[slot_position(number)]; }
  Meta& meta() const { return *at<Meta>(geometry_.meta); }
  std::atomic<uint32_t>* ring() const { return at<std::atomic<uint32_t>>(geometry_.ring); }
  std::atomic<uint64_t>* index(uint32_t area) const {
    return at<std::atomic<uint64_t>>(geometry_.index[area & 1]);
  }
  std::atomic<uint64_t>* buckets() const { return at<std::atomic<uint64_t>>(geometry_.buckets); }
  Record* records() const { return at<Record>(geometry_.records); }
  uint64_t* heap() const { return at<uint64_t>(geometry_.heap); }

  // Committed memory (I10). REQUIRES for commit: the lock is held.
  uint64_t committed() const;
  // Reserve [offset, offset + size) of the file so that touching it cannot fault.
  // kArenaFull: the capacity forbids it, or less than `keep` of it would be left; kNoSpace: the
  // file system has no pages.
  Status commit(uint64_t offset, uint64_t size, uint64_t keep = 0);

  // Identity. claim_slot is idempotent and thread-safe.
  Status claim_slot();
  // (slot + 1) << 17 | generation: never 0; the upper 30 bits of a lock word (lock.hpp).
  uint32_t owner_id() const { return owner_id_.load(std::memory_order_acquire); }
  bool owner_alive(uint32_t owner_id) const;
  uint32_t owner_pid(uint32_t owner_id) const;
  // Those that have a slot and live. A snapshot, for people.
  struct Owner {
    uint32_t pid;
    uint64_t pops;
  };
  std::vector<Owner> owners() const;

  // The reflector's seat: held until it is given back or the process ends. False: it is taken.
  bool claim_reflector();
  void release_reflector();
  bool reflector_alive() const;  // ours or another's
  bool is_reflector() const { return reflector_.load(std::memory_order_acquire); }

  // The name of a secondary index; `number` is below that of the root.
  std::string index_name(uint32_t number) const;
  // REQUIRES: the lock is held, and the root does not count the index yet.
  void set_index_name(uint32_t number, const std::string& name);

  // Which file this is, whatever its name stands for by now.
  uint64_t device() const { return device_; }
  uint64_t inode() const { return inode_; }
  // Whether the name stands for another file by now, so that nobody new will come to this one.
  // Asks the file system, at most every kLookNs; once true it stays true.
  bool superseded();
  bool unlinked() const { return meta().unlinked.load(std::memory_order_relaxed) != 0; }
  // Whether pages were missing when they were touched (bus_error.hpp): nothing that was read
  // since can be believed.
  bool lost() const { return watched_->lost.load(std::memory_order_acquire); }

  void child_after_fork();  // the atfork handler calls it

 private:
  Segment() = default;
  template <typename T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  Status open_descriptors(int fd, Finding& finding);
  Status map(Finding& finding);
  Status initialise(uint64_t capacity, std::string_view codec,
                    const std::vector<std::string>& indexes, uint64_t max_attempts,
                    Finding& finding);

  std::byte* base_ = nullptr;
  Geometry geometry_{};
  SipHash13 hash_{0, 0};
  uint64_t capacity_ = 0;
  Kind kind_{};
  bool writable_ = false;
  int fd_ = -1;
  int lock_fd_ = -1;
  uint64_t device_ = 0, inode_ = 0;
  std::string path_;
  WatchedMap* watched_ = nullptr;
  std::atomic<bool> superseded_{false};
  std::atomic<uint64_t> next_look_ns_{0};
  std::atomic<uint32_t> owner_id_{0};
  std::atomic<bool> reflector_{false};
};

}  // namespace shmcache
