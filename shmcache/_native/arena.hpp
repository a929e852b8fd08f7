// One arena as a handle uses it: the operations of Store and FIFO, each one critical section.
//
// Deadlines are CLOCK_MONOTONIC nanoseconds. Deadline 0 means "only if the lock is free now, and
// nothing is to be repaired": such a call never blocks, so the binding makes it with the GIL held and only on kLockTimeout
// lets the GIL go and calls again with a real deadline. kInterrupted means a signal came while
// waiting; nothing was done, handle it and call again.
//
// Sleeping (both kinds of sleepers, P7): `sleepers` is a flag, not a count, so the dead leave no
// trace. A sleeper sets it, looks for work once more, and sleeps on the word. Who makes work
// clears it and, if it was set, moves the word and wakes one (queue) or all (change). Of the
// queue's sleepers at most one wake-up is in flight: the woken one sets the flag again for the
// others, takes its item, and wakes the next if it sees more (the baton). Every sleep is bounded
// by kSleepNs, so a wake-up that dies with its process delays the others by that much at most.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lock.hpp"
#include "postings.hpp"
#include "queue.hpp"
#include "segment.hpp"
#include "status.hpp"
#include "table.hpp"
#include "timers.hpp"

namespace shmcache {

struct Entry {
  std::string_view key;
  Bytes value;
  // Indexer: what the index functions gave, for so many indexes, and what Postings::measure said.
  PackedTerms terms = {};
  uint64_t terms_size = 0;
  uint32_t indexes = 0;
  uint32_t priority = 0;  // FIFO: below kPriorities
};

// A private copy of an entry.
struct Item {
  std::unique_ptr<char[]> data;  // key, then payload
  uint64_t key_size = 0;
  uint64_t value_size = 0;
  uint64_t seq = 0;  // FIFO: its place in the queue

  std::string_view key() const { return {data.get(), key_size}; }
  std::string_view value() const { return {data.get() + key_size, value_size}; }
};

// What a handle knows of a Store's content; brought up to date by Arena::refresh.
struct View {
  std::vector<uint64_t> states;  // by record number: the state word if LIVE, else 0
  uint64_t live = 0;
  uint64_t mutation_seq = 1;  // of the last refresh; odd: never
  uint64_t ring_pos = 0;
  uint64_t version = 0;
  // The records that refreshes have looked at since the caller emptied it, some perhaps twice; or
  // `all`, and then it says nothing.
  std::vector<uint32_t> touched;
  bool all = false;
};

enum class Upsert : uint32_t { kAlways, kIfAbsent };

class Arena {
 public:
  explicit Arena(std::unique_ptr<Segment> segment);

  Segment& segment() { return *segment_; }
  Table& table() { return table_; }

  // --- Store ---
  // `wrote` is false if kIfAbsent found the key.
  Status upsert(const Entry& entry, Upsert how, uint64_t deadline, bool& wrote);
  // Under one lock. An error leaves nothing of it; a crash may leave its first entries, and
  // readers may see them one by one.
  Status upsert_many(const std::vector<Entry>& entries, uint64_t deadline);
  Status erase(std::string_view key, uint64_t deadline, bool& was_there);
  Status replace(const std::vector<Entry>& entries, std::string_view resource_version,
                 uint64_t deadline);
  // Without the lock. kBusy: the entry changed under every try; `copy` gets it under the lock.
  Status find(std::string_view key, Hit& hit) const;
  // Whether what find said is still so: by the index word that led there.
  bool still(const Hit& hit) const { return table_.still(hit); }
  Status copy(std::string_view key, uint64_t deadline, Item& item);
  // Whether `view` is still what the store holds.
  bool current(const View& view) const;

  // Bring `view` to one instant. `want` says whether the caller needs the content of a LIVE
  // record (it lacks that version); those are in `copies` by record number. `with_values` false
  // copies keys only.
  using Want = std::function<bool(RecordNo, uint64_t)>;
  Status refresh(View& view, const Want& want, bool with_values, uint64_t deadline,
                 std::unordered_map<uint32_t, Item>& copies);

  // --- Indexer ---
  struct Found {
    RecordNo record;
    uint64_t state;
  };
  // The entries that have one of `values` in an index, each once, at one instant; `want` and
  // `copies` as for refresh. Without the lock, unless writers never pause.
  Status select(uint32_t index, const std::vector<std::string_view>& values, const Want& want,
                bool with_values, uint64_t deadline, std::vector<Found>& found,
                std::unordered_map<uint32_t, Item>& copies);
  // Every value of an index, at one instant.
  Status index_values(uint32_t index, uint64_t deadline, std::vector<std::string>& values);
  // Add indexes to the `had` that there are: their values for every entry (by its version) are in
  // `terms`. kMiss: not for all; some of those that lack are in `missing`, and nothing was done.
  // kReindexed: somebody else has added some.
  struct Missing {
    uint64_t version;
    Item item;
  };
  Status reindex(const std::vector<std::string>& names, uint32_t had,
                 const std::unordered_map<uint64_t, std::string>& terms, uint64_t deadline,
                 std::vector<Missing>& missing);

  // --- FIFO ---
  // Take the oldest 1..max_items. kEmpty, or kShutDown if the queue is empty and shut down.
  Status try_pop(uint64_t max_items, uint64_t deadline, std::vector<Item>& items);
  // Undo a pop: the entry goes back to the place `seq`. Unless its key has been queued again
  // meanwhile: then the newer version stays where it is, and `wrote` is false.
  Status put_back(const Entry& entry, uint64_t seq, uint64_t deadline, bool& wrote);
  // Take the oldest and keep it in flight (claims.cpp). `lease_ns` after which it has failed, 0 for
  // as long as this handle lives. Errors as try_pop.
  struct Claim {
    RecordNo record = kNoRecord;
    uint64_t state = 0;     // of the record
    uint64_t number = 0;
    uint64_t failures = 0;  // before this claim
  };
  Status try_claim(uint64_t lease_ns, uint64_t deadline, Item& item, Claim& claim);
  // `ours` is false if the claim has been taken away, and then nothing has happened.
  enum class End { kDone, kFailed, kReleased };
  Status end_claim(const Claim& claim, End how, uint64_t deadline, bool& ours);
  Status retry_claim(const Claim& claim, uint64_t delay_ns, uint64_t deadline, bool& ours);
  Status renew(const Claim& claim, uint64_t lease_ns, uint64_t deadline, bool& ours);
  // Copies of what is in flight, or of the dead letters, in the order of their claims; or of what
  // is parked until its time (`deadline_ns`), in that order.
  struct Held {
    Item item;
    uint64_t claim = 0, failures = 0, deadline_ns = 0, since_ns = 0;
    uint32_t pid = 0;  // whose it is
  };
  Status held(Table::Sought sought, bool with_values, uint64_t deadline,
              std::vector<Held>& found);
  uint64_t oldest_claim_ns() const;
  bool is_cancelled(const Ticket& ticket) const;
  // Queue a dead letter again, or drop it.
  Status settle_dead(std::string_view key, bool drop, uint64_t deadline, bool& was_there);
  // Sleep until the queue may have something (kOk: look again) or until `deadline` (kEmpty).
  Status wait_ready(uint64_t deadline);
  // Copies of all entries, oldest first.
  Status queued(bool with_values, uint64_t deadline, std::vector<Item>& items);
  // When the item that is popped next was queued, 0 if there is none: without the lock, for people.
  uint64_t oldest_time() const;
  // kDrain says no more than that somebody waits until what there is has been worked off.
  enum class ShutDown : uint32_t { kOpen = 0, kEnd = 1, kDrain = 2 };
  Status shut_down(ShutDown how, bool immediate, uint64_t deadline);

  // --- WorkQueue (workqueue.cpp) ---
  // Make `key` dirty, now or `delay_ns` from now on; `open` is false if the queue is shut down, and
  // nothing has happened.
  Status enqueue(std::string_view key, uint32_t priority, uint64_t delay_ns, uint64_t deadline,
                 bool& open);
  // How often `key` has failed, before this failure.
  Status count_failure(std::string_view key, uint64_t deadline, uint64_t& before);
  Status failures(std::string_view key, uint64_t deadline, uint64_t& count);
  Status forget(std::string_view key, uint64_t deadline);
  // Take a token from the one bucket, of `burst` tokens, which gets one each `interval_ns`; it is
  // there in `wait_ns`.
  Status take_token(uint64_t interval_ns, uint64_t burst, uint64_t deadline, uint64_t& wait_ns);
  // Whether nothing is queued, and nothing in flight.
  Status idle(uint64_t deadline, bool& idle);

  // --- both queues ---
  // Whether time has brought something that somebody must see to, and to see to it: the claims of
  // the dead, leases that are over, keys that are due.
  bool is_due() const { return reap_is_due() || timer_is_due(); }
  Status look(uint64_t deadline);
  // How many could be popped now: `size` but for those behind claims.
  uint64_t waiting() const {
    return segment_->meta().waiting_count.load(std::memory_order_acquire);
  }

  // --- both ---
  uint64_t version() const;
  uint64_t size() const;
  bool has_synced() const;
  Status wait_change(uint64_t version, uint64_t deadline, uint64_t& now);
  std::string resource_version() const;
  // Say that the content is that of `resource_version`, as a replace does.
  Status bookmark(std::string_view resource_version, uint64_t deadline);
  // What the reflector says of itself. REQUIRES for set_report: this handle has the seat, and one
  // thread at a time.
  void set_report(const Report& report);
  Report report() const;
  // Take the lock and leave it: what was to be repaired is then repaired. A new segment becomes
  // an empty arena by it.
  Status settle(uint64_t deadline);
  // The invariants of layout.hpp that do not hold, one sentence each.
  Status check(uint64_t deadline, std::vector<std::string>& violations);
  Status testing_repair(uint64_t deadline);  // as after the death of a writer

  void close() { closed_.store(true, std::memory_order_release); }
  bool closed() const { return closed_.load(std::memory_order_acquire); }

 private:
  class Guard;
  friend class Guard;

  static constexpr uint64_t kAtTheTail = ~uint64_t{0};  // no seq

  Status repair_locked();
  bool drop_overlapping();
  // `resource_version` null: it stays. `indexes`: how many there are from then on.
  Status replace_locked(const std::vector<Entry>& entries, const std::string_view* resource_version,
                        uint32_t indexes);
  Status reindex_locked(const std::vector<std::string>& names,
                        const std::unordered_map<uint64_t, std::string>& terms,
                        std::vector<Missing>& missing);
  Status prepare(const Key& key, const Entry& entry, RecordNo& fresh);
  template <typename Look, typename Truth>
  Status at_one_instant(uint64_t deadline, Look&& look, Truth&& truth);
  Status upsert(const Entry& entry, Upsert how, uint64_t seq, uint64_t deadline, bool& wrote);
  // `seq`: the place in the queue of a new key; kAtTheTail: the last of `priority`.
  Status upsert_locked(const Key& key, RecordNo fresh, const Table::Place& place,
                       uint32_t priority, uint64_t seq);
  Status erase_locked(RecordNo record, bool queued);
  // claims.cpp
  Status in_flight(const Key& key, RecordNo& record) const;
  template <typename Each>
  Status each_of(const RecordList& list, Each&& each) const;
  Status worth_taking() const;
  Status something_waiting();
  bool reap_is_due() const;
  Status reap_if_due();
  Status reap(bool& begun);
  Status fail_locked(RecordNo held, bool counted);
  Status count_claim(RecordNo held, RecordNo newer, RecordNo parked);
  Status erase_dead(RecordNo record);
  Status mark_behind();
  Status cancel_claims();
  // workqueue.cpp
  struct Family {  // the records of one key
    RecordNo live = kNoRecord, in_flight = kNoRecord, parked = kNoRecord;
  };
  bool timer_is_due() const;
  Status family(const Key& key, Family& found) const;
  Status tickets(const Family& family, std::array<Ticket*, 3>& found) const;
  Status failures_locked(const Family& family, uint64_t& count) const;
  uint64_t failures_like(RecordNo record) const;
  Status bequeath(RecordNo gone, RecordNo heir);
  Status erase_done(RecordNo record, RecordNo newer);
  Status park(RecordNo record, uint64_t due);
  Status put_off(RecordNo parked, uint32_t priority, uint64_t due);
  Status retry_locked(RecordNo held, uint64_t due);
  Status publish_parked(RecordNo fresh, uint32_t priority, uint64_t due_ns, uint64_t failures);
  Status unpark(RecordNo record, uint32_t priority);
  Status raise(RecordNo live, uint32_t priority);
  Status wake_timers(bool& begun);
  Status add_locked(const Key& key, uint32_t priority, bool& changed);
  Status delay_locked(const Key& key, uint32_t priority, uint64_t delay_ns, bool& changed);
  Status nothing_left() const;
  bool holds(const Claim& claim) const;
  void count_pops(uint64_t more);
  Status copy_record(const Hit& hit, bool with_value, Item& item) const;
  Status examine(View& view, RecordNo record, const Want& want, bool with_values,
                 std::unordered_map<uint32_t, Item>& copies) const;
  Status catch_up(View& view, uint64_t pos, const Want& want, bool with_values,
                  std::unordered_map<uint32_t, Item>& copies) const;
  Status truth_locked(View& view, const Want& want, bool with_values,
                      std::unordered_map<uint32_t, Item>& copies) const;
  template <typename Each>
  Status each_true(Each&& each) const;
  bool truly_live(const Record& record) const;
  void stage_resource_version(std::string_view resource_version, uint64_t txn);
  void settle_replace(uint64_t generation);
  bool next_is_current(uint64_t count) const;
  void note_drained();
  void notify_change();
  void notify_ready();

  std::unique_ptr<Segment> segment_;
  Table table_;
  Queue queue_;
  Timers timers_;
  Postings postings_;
  std::atomic<bool> closed_{false};
};

}  // namespace shmcache
