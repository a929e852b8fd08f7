// Secondary indexes: what select and index_values say, against a model, and while others write.
#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "check.hpp"

using namespace shmcache;
using harness::drop;
using harness::entry;
using harness::keys_of;
using harness::put;
using harness::soon;

namespace {

const std::vector<std::string> kTwo = {"colour", "size"};

// By key, the index values as put() takes them.
using Model = std::map<std::string, std::set<std::string>>;

std::string text_of(const std::set<std::string>& terms) {
  std::string text;
  for (const std::string& term : terms) text += (text.empty() ? "" : " ") + term;
  return text;
}

void compare(Arena& arena, const Model& model) {
  std::map<std::string, std::vector<std::string>> expected;
  for (const auto& [key, terms] : model) {
    for (const std::string& term : terms) expected[term].push_back(key);
  }
  for (uint32_t index = 0; index < 2; ++index) {
    std::vector<std::string> values;
    CHECK(arena.index_values(index, soon(), values) == Status::kOk);
    std::sort(values.begin(), values.end());
    std::vector<std::string> live;
    for (const auto& [term, keys] : expected) {
      if (term[0] - '0' != static_cast<int>(index)) continue;
      live.push_back(term.substr(2));
      CHECK(keys_of(arena, index, live.back()) == keys);
    }
    CHECK(values == live);
    CHECK(keys_of(arena, index, "nobody has this value").empty());
  }
}

std::set<std::string> some_terms(harness::Random& random) {
  std::set<std::string> terms;
  for (uint64_t n = random(4); n-- > 0;) {
    // Few large lists and many small ones; also the empty value.
    const uint64_t value = random(4) == 0 ? random(400) : random(3);
    terms.insert(std::to_string(random(2)) + "=" + (value == 0 ? "" : std::to_string(value)));
  }
  return terms;
}

Arena::Want none() {
  return [](RecordNo, uint64_t) { return false; };
}

}  // namespace

CASE(indexer_like_a_map, "random writes leave every index equal to a model, and the arena whole (I11)") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kIndexer, 4 << 20, kTwo);
  harness::Random random{20};
  Model model;
  for (int round = 0; round < 60000; ++round) {
    const std::string key = "k" + std::to_string(random(700));
    if (random(400) == 0) {
      Model next;
      std::vector<std::pair<std::string, std::string>> made;
      for (uint64_t n = random(600); n-- > 0;) {
        next["k" + std::to_string(random(700))] = some_terms(random);
      }
      for (const auto& [k, terms] : next) made.emplace_back(k, harness::packed(text_of(terms)));
      std::vector<Entry> entries;
      const std::string value = "listed";
      for (const auto& [k, terms] : made) entries.push_back(entry(k, value, terms));
      CHECK(arena->replace(entries, "", soon()) == Status::kOk);
      model = next;
    } else if (random(4) == 0) {
      drop(*arena, key);
      model.erase(key);
    } else {
      model[key] = some_terms(random);
      put(*arena, key, std::string(random(60), 'v'), text_of(model[key]));
    }
    if (random(1000) == 0) CHECK(arena->testing_repair(soon()) == Status::kOk);
    if (round % 2000 == 0) {
      CHECK_WHOLE(*arena);
      compare(*arena, model);
    }
  }
  while (!model.empty()) {
    drop(*arena, model.begin()->first);
    model.erase(model.begin());
  }
  CHECK_WHOLE(*arena);
  compare(*arena, model);
  CHECK(arena->segment().meta().index_values == 0);  // the last entry took its values with it
  close(fd);
}

CASE(terms_of_other_indexes_are_refused, "who does not know all indexes of an arena cannot write to it") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kIndexer, 1 << 20, kTwo);
  bool wrote = false;
  const std::string terms = harness::packed("0=red");
  for (uint32_t indexes : {0u, 1u, 3u}) {
    const std::string none_given;
    const Entry made = entry("a", "x", none_given, indexes);
    CHECK(arena->upsert(made, Upsert::kAlways, soon(), wrote) == Status::kReindexed && !wrote);
    CHECK(arena->upsert_many({made}, soon()) == Status::kReindexed);
    CHECK(arena->replace({made}, "", soon()) == Status::kReindexed);
  }
  uint64_t size = 0;
  CHECK(!Postings::measure(terms, 0, size));                        // no such index
  CHECK(!Postings::measure(terms.substr(0, terms.size() - 1), 2, size));  // cut off
  std::vector<Arena::Missing> missing;
  CHECK(arena->reindex({"more"}, 1, {}, soon(), missing) == Status::kReindexed);
  CHECK(arena->reindex(std::vector<std::string>(kMaxIndexes - 1, "x"), 2, {}, soon(), missing) ==
        Status::kReindexed);
  CHECK(arena->size() == 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(readers_of_an_index_see_one_instant, "keys that move from value to value are found once in every read") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kIndexer, 16 << 20, kTwo);
  constexpr uint64_t kKeys = 60, kValues = 5;
  for (uint64_t i = 0; i < kKeys; ++i) {
    put(*arena, "k" + std::to_string(i), "", "0=0 1=all");
  }
  std::atomic<bool> done{false};
  auto read = [&](bool writable) {
    auto reader = harness::attach(fd, Kind::kIndexer, writable);
    std::vector<Arena::Found> found;
    std::unordered_map<uint32_t, Item> copies;
    std::vector<std::string> values;
    for (uint64_t reads = 0; reads < 200 || !done; ++reads) {
      CHECK(reader->select(0, {"0", "1", "2", "3", "4"}, none(), false, soon(), found, copies) ==
            Status::kOk);
      CHECK(found.size() == kKeys);
      CHECK(reader->index_values(1, soon(), values) == Status::kOk);
      CHECK(values == std::vector<std::string>{"all"});
      CHECK(keys_of(*reader, 1, "all").size() == kKeys);
    }
  };
  std::thread one(read, false), two(read, true);
  harness::Random random{7};
  for (int i = 0; i < 40000; ++i) {
    put(*arena, "k" + std::to_string(random(kKeys)), std::string(random(100), 'x'),
        "0=" + std::to_string(random(kValues)) + " 1=all");
    if (i % 10000 == 9999) CHECK(arena->testing_repair(soon()) == Status::kOk);
  }
  done = true;
  one.join();
  two.join();
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(damaged_postings_are_seen_and_mended, "the checker finds every link that leads astray, and repair sets it right") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kIndexer, 1 << 20, kTwo);
  for (const char* key : {"a", "b", "c"}) put(*arena, key, "v", "0=red 1=" + std::string(key));
  CHECK_WHOLE(*arena);
  Segment& segment = arena->segment();
  Hit hit;
  CHECK(arena->find("b", hit) == Status::kOk);
  const auto node = static_cast<uint64_t>(hit.terms() - segment.heap());
  uint64_t* words = segment.heap() + node;
  for (int word = 0; word < 6; ++word) {  // next, prev, chain, hash, owner, value
    const uint64_t was = load_word(words + word);
    for (uint64_t wrong : {was + 8, ~uint64_t{0}, uint64_t{node * 8}}) {
      if (word == 2) continue;  // b is no leader: its chain says nothing
      store_word(words + word, wrong);
      CHECK(!harness::violations(*arena).empty());
      std::vector<std::string> values;
      std::vector<Arena::Found> found;
      std::unordered_map<uint32_t, Item> copies;
      (void)arena->select(0, {"red"}, none(), true, soon(), found, copies);  // in bounds, and ends
      (void)arena->index_values(0, soon(), values);
      if (word < 2) {  // a link: derived from the entries
        CHECK(arena->testing_repair(soon()) == Status::kOk);
        CHECK_WHOLE(*arena);
        CHECK(keys_of(*arena, 0, "red") == (std::vector<std::string>{"a", "b", "c"}));
      } else {
        store_word(words + word, was);
        CHECK(arena->testing_repair(soon()) == Status::kOk);
      }
      CHECK(arena->find("b", hit) == Status::kOk);
    }
  }
  CHECK_WHOLE(*arena);
  close(fd);
}
