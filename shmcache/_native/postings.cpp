#include "postings.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

namespace shmcache {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

// A walk that a writer has led astray finds out after so many steps.
constexpr uint64_t kStepsBetweenLooks = 64;

uint64_t node_size(uint64_t head, uint64_t value_size) { return head + round_up(value_size, 8); }

constexpr size_t kPrefix = 4;  // of a packed term: index and size

struct PackedTerm {
  uint16_t index, size;
  std::string_view value;
};

// The next term of `packed`, which it leaves; false if that is cut off.
bool next_term(PackedTerms& packed, PackedTerm& term) {
  if (packed.size() < kPrefix) return false;
  std::memcpy(&term.index, packed.data(), 2);
  std::memcpy(&term.size, packed.data() + 2, 2);
  if (packed.size() - kPrefix < term.size) return false;
  term.value = packed.substr(kPrefix, term.size);
  packed.remove_prefix(kPrefix + term.size);
  return true;
}

}  // namespace

bool Postings::measure(PackedTerms packed, uint32_t indexes, uint64_t& size) {
  size = 0;
  for (PackedTerm term; !packed.empty(); size += node_size(kHead, term.size)) {
    if (!next_term(packed, term) || term.index >= indexes) return false;
  }
  return true;
}

uint64_t Postings::hash(uint32_t index, std::string_view value) const {
  // The key of the index's number keeps equal values of two indexes apart.
  return segment_.hash()(value.data(), value.size()) * (2 * uint64_t{index} + 1);
}

uint64_t Postings::buckets() const {
  const uint64_t bytes = std::min(segment_.meta().buckets_committed.load(acquire),
                                  segment_.geometry().buckets_max);
  return std::bit_floor(bytes / sizeof(uint64_t));
}

std::atomic<uint64_t>& Postings::bucket(uint64_t hash) const {
  return segment_.buckets()[hash & (buckets() - 1)];
}

bool Postings::valid(NodeOffset node) const {
  const uint64_t at = raw(node), end = table_.heap().committed();
  return at >= 8 && at % 8 == 0 && end >= kHead && at <= end - kHead &&
         (field(node, kOwner) >> 48) <= end - kHead - at;
}

uint64_t Postings::field(NodeOffset node, uint64_t at) const {
  return load_word(segment_.heap() + (raw(node) + at) / 8);
}
void Postings::set_field(NodeOffset node, uint64_t at, uint64_t value) {
  store_word(segment_.heap() + (raw(node) + at) / 8, value);
}
const uint64_t* Postings::text(NodeOffset node) const {
  return segment_.heap() + (raw(node) + kHead) / 8;
}
Postings::Term Postings::term(NodeOffset node) const {
  const uint64_t owner = field(node, kOwner);
  return {RecordNo{static_cast<uint32_t>(owner)}, static_cast<uint32_t>(owner >> 32 & 0xffff),
          owner >> 48};
}

bool Postings::same_term(NodeOffset a, NodeOffset b) const {
  const Term x = term(a), y = term(b);
  if (field(a, kHash) != field(b, kHash) || x.index != y.index || x.size != y.size) return false;
  for (uint64_t w = 0; w < round_up(x.size, 8) / 8; ++w) {
    if (load_word(text(a) + w) != load_word(text(b) + w)) return false;
  }
  return true;
}

// --- walks --------------------------------------------------------------------------------------

template <typename Each>
Status Postings::follow(NodeOffset from, uint64_t at, uint64_t seq, Each&& each) const {
  const uint64_t most = table_.heap().committed() / kHead;
  uint64_t steps = 0;
  for (NodeOffset n = from; n != kNoNode; n = node(n, at)) {
    if (!valid(n) || ++steps > most) return Status::kBusy;
    if (steps % kStepsBetweenLooks == 0) {
      std::atomic_thread_fence(acquire);
      if (segment_.meta().mutation_seq.load(relaxed) != seq) return Status::kBusy;
    }
    if (Status s = each(n); s != Status::kOk) return s;
  }
  return Status::kOk;
}

Status Postings::leader(uint64_t hash, uint32_t index, std::string_view value, uint64_t seq,
                        NodeOffset& found) const {
  found = kNoNode;
  const Status s =
      follow(NodeOffset{bucket(hash).load(relaxed)}, kChain, seq, [&](NodeOffset n) {
        const Term t = term(n);
        if (field(n, kHash) != hash || t.index != index || t.size != value.size() ||
            !equals(text(n), value.data(), value.size())) {
          return Status::kOk;
        }
        found = n;
        return Status::kMiss;  // stop here
      });
  return s == Status::kMiss ? Status::kOk : s;
}

Status Postings::members(uint32_t index, std::string_view value, uint64_t seq,
                         std::vector<RecordNo>& found) const {
  NodeOffset first;
  if (Status s = leader(hash(index, value), index, value, seq, first); s != Status::kOk) return s;
  return follow(first, kNext, seq, [&](NodeOffset n) {
    found.push_back(term(n).record);
    return Status::kOk;
  });
}

template <typename Each>
Status Postings::each_leader(uint64_t seq, Each&& each) const {
  for (uint64_t b = 0, n = buckets(); b < n; ++b) {
    const uint64_t first = segment_.buckets()[b].load(relaxed);
    if (first == 0) continue;
    const Status s = follow(NodeOffset{first}, kChain, seq,
                            [&](NodeOffset leader) { return each(b, leader); });
    if (s != Status::kOk) return s;
  }
  return Status::kOk;
}

Status Postings::values(uint32_t index, uint64_t seq, std::vector<std::string>& found) const {
  return each_leader(seq, [&](uint64_t, NodeOffset n) {
    const Term t = term(n);
    if (t.index != index) return Status::kOk;
    std::string value(t.size, '\0');
    copy_out(value.data(), text(n), t.size);
    found.push_back(std::move(value));
    return Status::kOk;
  });
}

Status Postings::visit(const Visit& visit) const {
  const uint64_t seq = segment_.meta().mutation_seq.load(relaxed);
  return each_leader(seq, [&](uint64_t bucket, NodeOffset leader) {
    std::vector<NodeOffset> list;
    const Status s = follow(leader, kNext, seq, [&](NodeOffset n) {
      // The links back are as much a part of the list as those forth.
      if (node(n, kPrev) != (list.empty() ? kNoNode : list.back())) return Status::kCorrupt;
      list.push_back(n);
      return Status::kOk;
    });
    if (s == Status::kOk) visit(bucket, list);
    return s;
  });
}

// --- what one entry says ------------------------------------------------------------------------

template <typename Each>
bool Postings::each_node(const Hit& hit, Each&& each) const {
  uint64_t at = static_cast<uint64_t>(hit.terms() - segment_.heap()) * 8;
  const uint64_t end = at + hit.terms_size;
  while (at < end) {
    const NodeOffset n{at};
    if (end - at < kHead) return false;
    const uint64_t size = node_size(kHead, term(n).size);
    if (size > end - at) return false;
    if (!each(n)) return true;
    at += size;
  }
  return true;
}

bool Postings::has(const Hit& hit, uint32_t index, std::string_view value) const {
  bool found = false;
  each_node(hit, [&](NodeOffset n) {
    const Term t = term(n);
    found = t.index == index && t.size == value.size() && equals(text(n), value.data(), t.size);
    return !found;
  });
  return found;
}

void Postings::collect(const Hit& hit, uint32_t index, std::set<std::string>& values) const {
  each_node(hit, [&](NodeOffset n) {
    const Term t = term(n);
    if (t.index == index) {
      std::string value(t.size, '\0');
      copy_out(value.data(), text(n), t.size);
      values.insert(std::move(value));
    }
    return true;
  });
}

std::string Postings::packed(const Hit& hit) const {
  std::string packed;
  each_node(hit, [&](NodeOffset n) {
    const Term t = term(n);
    const auto index = static_cast<uint16_t>(t.index), size = static_cast<uint16_t>(t.size);
    const size_t at = packed.size();
    packed.resize(at + kPrefix + t.size);
    std::memcpy(packed.data() + at, &index, 2);
    std::memcpy(packed.data() + at + 2, &size, 2);
    copy_out(packed.data() + at + kPrefix, text(n), t.size);
    return true;
  });
  return packed;
}

std::vector<NodeOffset> Postings::nodes_of(const Hit& hit) const {
  std::vector<NodeOffset> nodes;
  each_node(hit, [&](NodeOffset n) {
    nodes.push_back(n);
    return true;
  });
  return nodes;
}

bool Postings::well_formed(RecordNo number) const {
  Hit hit;
  const uint32_t indexes = table_.root().indexes;
  if (table_.peek(number, hit) != Status::kOk) return false;
  bool fine = true;
  const bool whole = each_node(hit, [&](NodeOffset n) {
    const Term t = term(n);
    std::string value(t.size, '\0');
    copy_out(value.data(), text(n), t.size);
    fine = t.record == number && t.index < indexes && field(n, kHash) == hash(t.index, value);
    return fine;
  });
  return fine && whole;
}

bool Postings::same_terms(RecordNo number, PackedTerms packed) const {
  Hit hit;
  if (table_.peek(number, hit) != Status::kOk) return false;
  bool same = true;
  each_node(hit, [&](NodeOffset n) {
    const Term t = term(n);
    PackedTerm other;
    same = next_term(packed, other) && t.index == other.index && t.size == other.size &&
           equals(text(n), other.value.data(), t.size);
    return same;
  });
  return same && packed.empty();
}

// --- writers ------------------------------------------------------------------------------------

void Postings::write(RecordNo fresh, PackedTerms packed) {
  const Record& r = table_.record(fresh);
  uint64_t at = raw(r.extent.load(relaxed)) + round_up(r.key_size.load(relaxed), 8) +
                round_up(r.value_size.load(relaxed), 8);
  for (PackedTerm term; !packed.empty() && next_term(packed, term);) {
    const NodeOffset n{at};
    set_field(n, kNext, 0);
    set_field(n, kPrev, 0);
    set_field(n, kChain, 0);
    set_field(n, kHash, hash(term.index, term.value));
    set_field(n, kOwner, raw(fresh) | uint64_t{term.index} << 32 | uint64_t{term.size} << 48);
    copy_in(segment_.heap() + (at + kHead) / 8, term.value.data(), term.size);
    at += node_size(kHead, term.size);
  }
}

Status Postings::link_node(NodeOffset fresh) {
  const uint64_t hash = field(fresh, kHash);
  const uint64_t seq = segment_.meta().mutation_seq.load(relaxed);
  std::atomic<uint64_t>& head = bucket(hash);
  NodeOffset first = kNoNode;
  Status s = follow(NodeOffset{head.load(relaxed)}, kChain, seq, [&](NodeOffset n) {
    if (!same_term(n, fresh)) return Status::kOk;
    first = n;
    return Status::kMiss;
  });
  if (s != Status::kOk && s != Status::kMiss) return Status::kCorrupt;
  if (first == kNoNode) {
    set_field(fresh, kNext, 0);
    set_field(fresh, kPrev, 0);
    set_field(fresh, kChain, head.load(relaxed));
    head.store(raw(fresh), relaxed);
    Meta& m = segment_.meta();
    m.index_values.store(m.index_values.load(relaxed) + 1, relaxed);
    return Status::kOk;
  }
  const NodeOffset second = node(first, kNext);
  if (second != kNoNode && !valid(second)) return Status::kCorrupt;
  set_field(fresh, kNext, raw(second));
  set_field(fresh, kPrev, raw(first));
  set_field(fresh, kChain, 0);
  set_field(first, kNext, raw(fresh));
  if (second != kNoNode) set_field(second, kPrev, raw(fresh));
  return Status::kOk;
}

Status Postings::unlink_node(NodeOffset gone) {
  const NodeOffset next = node(gone, kNext), prev = node(gone, kPrev);
  if ((next != kNoNode && !valid(next)) || (prev != kNoNode && !valid(prev))) {
    return Status::kCorrupt;
  }
  if (prev != kNoNode) {
    set_field(prev, kNext, raw(next));
    if (next != kNoNode) set_field(next, kPrev, raw(prev));
    return Status::kOk;
  }
  // A leader: the next node takes its place in the chain, if there is one.
  const uint64_t seq = segment_.meta().mutation_seq.load(relaxed);
  std::atomic<uint64_t>& head = bucket(field(gone, kHash));
  NodeOffset before = kNoNode;
  bool found = false;
  const Status s = follow(NodeOffset{head.load(relaxed)}, kChain, seq, [&](NodeOffset n) {
    if (n == gone) {
      found = true;
      return Status::kMiss;
    }
    before = n;
    return Status::kOk;
  });
  if (!found || s != Status::kMiss) return Status::kCorrupt;
  uint64_t heir = field(gone, kChain);
  if (next != kNoNode) {
    set_field(next, kPrev, 0);
    set_field(next, kChain, heir);
    heir = raw(next);
  } else {
    Meta& m = segment_.meta();
    m.index_values.store(m.index_values.load(relaxed) - 1, relaxed);
  }
  if (before == kNoNode) {
    head.store(heir, relaxed);
  } else {
    set_field(before, kChain, heir);
  }
  return Status::kOk;
}

template <typename Change>
Status Postings::change_nodes(const Hit& hit, Change&& change) const {
  Status status = Status::kOk;
  const bool whole = each_node(hit, [&](NodeOffset n) {
    status = change(n);
    return status == Status::kOk;
  });
  return whole ? status : Status::kCorrupt;
}

Status Postings::link(RecordNo record) {
  Hit hit;  // not by peek: the record may still be FREE
  const Record& r = table_.record(record);
  hit.key_size = r.key_size.load(relaxed);
  hit.value_size = r.value_size.load(relaxed);
  hit.terms_size = r.terms_size.load(relaxed);
  hit.extent = segment_.heap() + raw(r.extent.load(relaxed)) / 8;
  return change_nodes(hit, [&](NodeOffset n) { return link_node(n); });
}

Status Postings::unlink(RecordNo record) {
  Hit hit;
  if (table_.peek(record, hit) != Status::kOk) return Status::kCorrupt;
  return change_nodes(hit, [&](NodeOffset n) { return unlink_node(n); });
}

Status Postings::reserve(uint64_t count) {
  Meta& m = segment_.meta();
  const Geometry& g = segment_.geometry();
  const uint64_t wanted = m.index_values.load(relaxed) + count;
  const uint64_t had = m.buckets_committed.load(relaxed);
  if (count == 0 || wanted <= had / 8) return Status::kOk;
  const uint64_t bytes = std::min(std::bit_ceil(wanted) * 8, g.buckets_max);
  if (bytes <= had || segment_.commit(g.buckets + had, bytes - had) != Status::kOk) {
    return Status::kOk;
  }
  table_.begin_mutation();
  m.buckets_committed.store(bytes, release);  // P5
  const Status s = rebuild();
  if (s == Status::kOk) table_.end_mutation();
  return s;
}

Status Postings::rebuild() {
  for (uint64_t b = 0, n = buckets(); b < n; ++b) segment_.buckets()[b].store(0, relaxed);
  segment_.meta().index_values.store(0, relaxed);
  for (uint64_t i = 0, n = table_.records_used(); i < n; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    if (state_of(table_.record(number).state.load(relaxed)) != State::kLive) continue;
    if (Status s = link(number); s != Status::kOk) return s;
  }
  return Status::kOk;
}

}  // namespace shmcache
