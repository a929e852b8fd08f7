// Table, index and heap, against a plain map, with the checker after every burst.
#include <map>

#include "check.hpp"

using namespace shmcache;
using harness::put;
using harness::soon;
using harness::value_of;

namespace {

std::vector<Entry> entries_of(const std::map<std::string, std::string>& model) {
  std::vector<Entry> entries;
  for (const auto& [key, value] : model) entries.push_back({key, {value.data(), value.size()}});
  return entries;
}

void same(Arena& arena, const std::map<std::string, std::string>& model) {
  CHECK(arena.size() == model.size());
  for (const auto& [key, value] : model) {
    Hit hit;
    CHECK(arena.find(key, hit) == Status::kOk);
    std::string found(hit.value_size, '\0');
    CHECK(arena.table().read_value(hit, found.data()));
    CHECK(found == value);
  }
}

}  // namespace

CASE(store_like_a_map, "random writes leave the content of a map and a whole arena (I1 to I10)") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  std::map<std::string, std::string> model;
  harness::Random random{88172645463325252u};
  for (int burst = 0; burst < 60; ++burst) {
    for (int i = 0; i < 300; ++i) {
      std::string key = "key-" + std::to_string(random(700));
      if (random(3) == 0) {
        bool was_there = false;
        CHECK(arena->erase(key, soon(), was_there) == Status::kOk);
        CHECK(was_there == (model.erase(key) == 1));
      } else {
        std::string value(random(random(10) == 0 ? 20000 : 300), static_cast<char>('a' + i % 26));
        put(*arena, key, value);
        model[key] = value;
      }
    }
    CHECK_WHOLE(*arena);
    same(*arena, model);
    if (burst % 10 == 9) {
      CHECK(arena->testing_repair(soon()) == Status::kOk);
      CHECK_WHOLE(*arena);
      same(*arena, model);
    }
    if (burst % 15 == 14) {
      for (auto at = model.begin(); at != model.end();) {
        if (random(2) == 0) {
          at = model.erase(at);
        } else {
          if (random(3) == 0) at->second += "changed";
          ++at;
        }
      }
      for (int i = 0; i < 50; ++i) model["new-" + std::to_string(random(1000))] = "fresh";
      CHECK(arena->replace(entries_of(model), std::to_string(burst), soon()) == Status::kOk);
      CHECK(arena->resource_version() == std::to_string(burst));
      CHECK_WHOLE(*arena);
      same(*arena, model);
    }
  }
  close(fd);
}

CASE(sizes_at_the_edges, "values from 0 bytes to nearly the capacity, keys to 65,535 bytes") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore, 32 << 20);
  put(*arena, "k", "");
  CHECK(value_of(*arena, "k") == "");
  std::string key(kMaxKeySize, 'K');
  put(*arena, key, "value");
  CHECK(value_of(*arena, key) == "value");
  std::string large(30 << 20, 'v');
  put(*arena, "large", large);
  CHECK(value_of(*arena, "large") == large);
  CHECK_WHOLE(*arena);
  bool wrote = false, was_there = false;
  Status s = arena->upsert({"another", {large.data(), large.size()}}, Upsert::kAlways, soon(), wrote);
  CHECK(s == Status::kArenaFull && !wrote);
  CHECK_WHOLE(*arena);
  CHECK(arena->erase("large", soon(), was_there) == Status::kOk && was_there);
  put(*arena, "another", large);  // freed memory is used again, also the largest piece
  CHECK(arena->upsert({"", {"x", 1}}, Upsert::kAlways, soon(), wrote) == Status::kKeySize);
  CHECK(arena->upsert({std::string(kMaxKeySize + 1, 'x'), {"x", 1}}, Upsert::kAlways, soon(),
                      wrote) == Status::kKeySize);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(full_arena_keeps_content, "a replace or batch that does not fit changes nothing") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore, 1 << 20);
  std::map<std::string, std::string> model;
  for (int i = 0; i < 100; ++i) model["k" + std::to_string(i)] = std::string(1000, 'v');
  CHECK(arena->replace(entries_of(model), "1", soon()) == Status::kOk);
  std::map<std::string, std::string> larger;
  for (int i = 50; i < 2000; ++i) larger["k" + std::to_string(i)] = std::string(1000, 'w');
  CHECK(arena->replace(entries_of(larger), "2", soon()) == Status::kArenaFull);
  CHECK_WHOLE(*arena);
  same(*arena, model);
  CHECK(arena->resource_version() == "1");
  CHECK(arena->upsert_many(entries_of(larger), soon()) == Status::kArenaFull);
  CHECK_WHOLE(*arena);
  same(*arena, model);
  CHECK(arena->replace({}, "3", soon()) == Status::kOk);
  CHECK(arena->size() == 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(replace_edges, "of duplicates the last wins; unchanged entries keep their record") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  auto entry = [](const char* key, const char* value) {
    return Entry{key, {value, std::strlen(value)}};
  };
  CHECK(arena->replace({entry("a", "1"), entry("b", "1")}, "1", soon()) == Status::kOk);
  Hit before, after;
  CHECK(arena->find("a", before) == Status::kOk);
  CHECK(arena->replace({entry("a", "2"), entry("a", "1"), entry("c", "1"), entry("c", "2")}, "2",
                       soon()) == Status::kOk);
  CHECK_WHOLE(*arena);
  CHECK(arena->find("a", after) == Status::kOk);
  CHECK(before.record == after.record && before.state == after.state);
  CHECK(arena->size() == 2 && value_of(*arena, "c") == "2" && value_of(*arena, "b") == "(absent)");
  CHECK(arena->replace({entry("a", "1"), entry("a", "3")}, "3", soon()) == Status::kOk);
  CHECK_WHOLE(*arena);
  CHECK(value_of(*arena, "a") == "3" && arena->size() == 1);
  close(fd);
}

CASE(position_independent, "two maps of one segment at two addresses see one content") {
  int fd = harness::anonymous_file();
  auto one = harness::create(fd, Kind::kStore);
  auto two = harness::attach(fd, Kind::kStore);
  auto reader = harness::attach(fd, Kind::kStore, false);
  put(*one, "a", "1");
  put(*two, "b", "2");
  CHECK(&one->segment().meta() != &two->segment().meta());
  for (Arena* arena : {one.get(), two.get(), reader.get()}) {
    CHECK(value_of(*arena, "a") == "1" && value_of(*arena, "b") == "2");
    CHECK_WHOLE(*arena);
  }
  bool wrote = false;
  CHECK(reader->upsert({"c", {"3", 1}}, Upsert::kAlways, soon(), wrote) == Status::kReadOnly);
  close(fd);
}

CASE(a_million_entries, "a million entries are stored, found, checked and repaired") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore, uint64_t{1} << 30);
  constexpr int kCount = 1'000'000;
  for (int i = 0; i < kCount; ++i) {
    const std::string key = "ns/object-" + std::to_string(i);
    bool wrote = false;
    CHECK(arena->upsert({key, {&i, sizeof i}}, Upsert::kAlways, soon(), wrote) == Status::kOk);
  }
  CHECK(arena->size() == kCount);
  CHECK(arena->testing_repair(soon()) == Status::kOk);
  std::printf("repair of %d entries: %.1f ms\n", kCount,
              static_cast<double>(arena->segment().meta().last_repair_ns.load()) / 1e6);
  CHECK_WHOLE(*arena);
  for (int i = 0; i < kCount; i += 7) {
    Hit hit;
    int value = -1;
    CHECK(arena->find("ns/object-" + std::to_string(i), hit) == Status::kOk);
    CHECK(hit.value_size == sizeof value && arena->table().read_value(hit, &value) && value == i);
  }
  close(fd);
}
