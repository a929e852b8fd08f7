// Postings: which entries have which value in which secondary index of an Indexer.
//
// A *term* is (index number, value). Index functions are the callers'; what they gave for an entry
// is stored with it, in its extent after the payload, as one *node* a term:
//
//      0  next    the next node of the same term, 0 for the last
//      8  prev    the one before; 0: this node is the *leader* of its list
//     16  chain   of a leader: the next leader in its bucket, 0 for the last
//     24  hash    of the term, keyed
//     32  owner   record number | index << 32 | size of the value << 48
//     40  value, padded to 8
//
//   bucket[hash % buckets] -> leader -chain-> leader -> 0
//                               | next
//                             node <-> node -> 0
//
// Links are offsets of nodes in the heap; 0 is no node, because a block begins with its header. A
// list has no memory of its own: its first node stands for it, and where that goes, the next takes
// its place. So a value is there for as long as an entry has it, nothing is allocated beside the
// entry, and repair needs no memory either.
//
// I11  Each node of a LIVE record is in the list of its term, once; each list has one leader, in
//      the chain of its bucket; lists and chains hold nothing else; `index_values` counts leaders.
//
// The values are the truth (they are of the entry, and never change while it lives); the links are
// derived, and change inside a mutation only. So a reader takes no lock: it follows links, and
// believes what it found if `mutation_seq` was even before and has not moved (P4). What it follows
// meanwhile may be anything; every offset is bounded, and a walk looks at `mutation_seq` now and
// then, so that it ends.
//
// Crash: links are rebuilt in place, from the records, with `mutation_seq` odd, so nobody believes
// what is half done; a repair that dies leaves it odd.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "layout.hpp"
#include "segment.hpp"
#include "status.hpp"
#include "table.hpp"

namespace shmcache {

enum class NodeOffset : uint64_t {};
constexpr uint64_t raw(NodeOffset n) { return static_cast<uint64_t>(n); }
constexpr NodeOffset kNoNode{0};
constexpr uint64_t kLeastNode = 40;  // bytes, with an empty value

// How callers hand over terms: (u16 index, u16 size, value), packed, each term once.
using PackedTerms = std::string_view;

class Postings {
 public:
  Postings(Segment& segment, Table& table) : segment_(segment), table_(table) {}

  // Bytes that the nodes of `packed` take. False: it is not well formed, or names an index that is
  // not there.
  static bool measure(PackedTerms packed, uint32_t indexes, uint64_t& size);

  // --- readers; the result is good if `mutation_seq` is still `seq` after the call ---
  // The entries with this value. kBusy: the walk met something impossible.
  Status members(uint32_t index, std::string_view value, uint64_t seq,
                 std::vector<RecordNo>& found) const;
  // Every value of an index, once each.
  Status values(uint32_t index, uint64_t seq, std::vector<std::string>& found) const;

  // --- what one entry says; any time, while its state word is that of `hit` ---
  bool has(const Hit& hit, uint32_t index, std::string_view value) const;
  std::string packed(const Hit& hit) const;
  void collect(const Hit& hit, uint32_t index, std::set<std::string>& values) const;

  // --- writers; REQUIRES: the lock is held for writing ---
  // The nodes of a record that `prepare` has made room for.
  void write(RecordNo fresh, PackedTerms packed);
  bool same_terms(RecordNo record, PackedTerms packed) const;
  // Whether the nodes in the extent of a record are whole, apart from their links.
  bool well_formed(RecordNo record) const;
  // Make the buckets fit `count` more values, if there is memory; else chains get longer.
  Status reserve(uint64_t count);
  // REQUIRES: inside a mutation.
  Status link(RecordNo record);
  Status unlink(RecordNo record);
  // All links anew, from the LIVE records.
  Status rebuild();

  // For the checker: every list, as the nodes of one term and their bucket.
  using Visit = std::function<void(uint64_t bucket, const std::vector<NodeOffset>& list)>;
  Status visit(const Visit& visit) const;
  // The nodes of one entry.
  std::vector<NodeOffset> nodes_of(const Hit& hit) const;
  bool same_term(NodeOffset a, NodeOffset b) const;
  uint64_t bucket_of(NodeOffset node) const { return field(node, kHash) & (buckets() - 1); }
  uint64_t buckets() const;

 private:
  static constexpr uint64_t kNext = 0, kPrev = 8, kChain = 16, kHash = 24, kOwner = 32;
  static constexpr uint64_t kHead = kLeastNode;

  struct Term {
    RecordNo record;
    uint32_t index;
    uint64_t size;
  };

  uint64_t hash(uint32_t index, std::string_view value) const;
  uint64_t field(NodeOffset node, uint64_t at) const;
  void set_field(NodeOffset node, uint64_t at, uint64_t value);
  NodeOffset node(NodeOffset from, uint64_t at) const { return NodeOffset{field(from, at)}; }
  const uint64_t* text(NodeOffset node) const;
  Term term(NodeOffset node) const;
  bool valid(NodeOffset node) const;
  std::atomic<uint64_t>& bucket(uint64_t hash) const;
  // Calls `each` with the nodes of an extent in order, until it says false; false if one is not
  // well formed.
  template <typename Each>
  bool each_node(const Hit& hit, Each&& each) const;
  Status leader(uint64_t hash, uint32_t index, std::string_view value, uint64_t seq,
                NodeOffset& found) const;
  // Calls `change` with each node of an extent, until one fails.
  template <typename Change>
  Status change_nodes(const Hit& hit, Change&& change) const;
  Status link_node(NodeOffset node);
  Status unlink_node(NodeOffset node);
  // Calls `each` for every node from `from` on, along the links at `at`, until it says not kOk.
  template <typename Each>
  Status follow(NodeOffset from, uint64_t at, uint64_t seq, Each&& each) const;
  // Calls `each(bucket, leader)` for every list.
  template <typename Each>
  Status each_leader(uint64_t seq, Each&& each) const;

  Segment& segment_;
  Table& table_;
};

}  // namespace shmcache
