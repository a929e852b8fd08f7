// Every crash image: each mutating operation is run in a child, one instruction at a time
// (ptrace), and whenever the segment has changed its bytes are kept. Each such image is what
// others find if the process is killed right there. It is attached afresh, read without repair,
// repaired, checked, and its content must be the old or the new. The same again, two deep, for
// images of the repair itself.
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <map>
#include <set>

#include "check.hpp"

using namespace shmcache;
using harness::drop;
using harness::put;
using harness::soon;

namespace {

// Keys in queue order for a FIFO, in key order for a Store.
using Content = std::vector<std::pair<std::string, std::string>>;
using Operation = std::function<void(Arena&)>;

struct Range {
  uint64_t offset, size;
};

// The parts of the file that an arena uses: all of the fixed ones but the owner slots, and as much
// of the others as an operation may commit.
std::vector<Range> ranges(const Segment& segment, bool grows) {
  const Geometry& g = segment.geometry();
  const uint64_t index = 2 * segment.meta().index_committed.load();
  return {{0, 2 * kPage},
          {g.meta, g.index[0] - g.meta},
          {g.index[0], grows ? index : index / 2},
          {g.index[1], grows ? index : index / 2},
          {g.records, segment.meta().records_committed.load() * sizeof(Record) + kPage},
          {g.heap, segment.meta().heap_committed.load() + (grows ? 72 << 10 : 0)}};
}

using Image = std::vector<std::byte>;

Image take(const Segment& segment, const std::vector<Range>& parts) {
  Image image;
  const auto* base = reinterpret_cast<const std::byte*>(&segment.header());
  for (auto [offset, size] : parts) {
    image.insert(image.end(), base + offset, base + offset + size);
  }
  return image;
}

bool same(const Segment& segment, const std::vector<Range>& parts, const Image& image) {
  const auto* base = reinterpret_cast<const std::byte*>(&segment.header());
  const std::byte* at = image.data();
  for (auto [offset, size] : parts) {
    if (std::memcmp(base + offset, at, size) != 0) return false;
    at += size;
  }
  return true;
}

// A file with this image, as a crash leaves it: nobody alive holds anything.
int file_of(const Image& image, const std::vector<Range>& parts, const Geometry& g) {
  int fd = harness::anonymous_file();
  CHECK(ftruncate(fd, static_cast<off_t>(g.file_size)) == 0);
  const std::byte* at = image.data();
  for (auto [offset, size] : parts) {
    CHECK(pwrite(fd, at, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size));
    at += size;
  }
  // What a waiter would find out after 20 ms: the owner is dead.
  uint32_t lock;
  CHECK(pread(fd, &lock, sizeof lock, static_cast<off_t>(g.control)) == sizeof lock);
  lock &= kLockDirty;
  CHECK(pwrite(fd, &lock, sizeof lock, static_cast<off_t>(g.control)) == sizeof lock);
  return fd;
}

// Run `operation` step by step in a child; the distinct images, the first is the one before it.
std::vector<Image> step(Arena& arena, const std::vector<Range>& parts, const Operation& operation,
                        size_t every = 1) {
  const pid_t pid = fork();
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    operation(arena);
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
  std::vector<Image> images{take(arena.segment(), parts)};
  Image last = images.front();
  size_t changes = 0;
  for (;;) {
    CHECK(ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    if (WSTOPSIG(status) == SIGSTOP) break;  // the operation is complete
    if (same(arena.segment(), parts, last)) continue;
    last = take(arena.segment(), parts);
    if (++changes % every == 0) images.push_back(last);
  }
  kill(pid, SIGKILL);
  CHECK(waitpid(pid, &status, 0) == pid);
  if (images.back() != last) images.push_back(last);
  return images;
}

Content content(Arena& arena) {
  Content found;
  if (arena.segment().kind() == Kind::kFifo) {
    std::vector<Item> items;
    CHECK(arena.queued(true, soon(), items) == Status::kOk);
    for (const Item& item : items) found.emplace_back(item.key(), item.value());
    return found;
  }
  View view;
  std::unordered_map<uint32_t, Item> copies;
  CHECK(arena.refresh(view, [](RecordNo, uint64_t) { return true; }, true, soon(), copies) ==
        Status::kOk);
  for (const auto& [record, item] : copies) found.emplace_back(item.key(), item.value());
  std::sort(found.begin(), found.end());
  return found;
}

std::string value_in(const Content& content, const std::string& key) {
  for (const auto& [k, v] : content) {
    if (k == key) return v;
  }
  return "(absent)";
}

// What is wrong with the image; "" if it is as the contract has it.
std::string judge(const Image& image, const std::vector<Range>& parts, const Geometry& geometry,
                  Kind kind, const std::vector<Content>& allowed, bool atomic) {
  int fd = file_of(image, parts, geometry);
  std::string wrong;
  {
    auto reader = harness::attach(fd, kind, false);
    // Without the lock and before any repair, as a lock-free reader would: each key has one of
    // its allowed values, and all of them are of one allowed content if it is atomic.
    std::set<std::string> keys;
    for (const Content& c : allowed) {
      for (const auto& [key, value] : c) keys.insert(key);
    }
    Content seen;
    for (const std::string& key : keys) {
      Hit hit;
      std::string value = "(absent)";
      const Status s = reader->find(key, hit);
      if (s == Status::kOk) {
        value.assign(hit.value_size, '\0');
        if (!reader->table().read_value(hit, value.data())) wrong = "torn: " + key;
      } else if (s != Status::kMiss) {
        wrong = "cannot read " + key;
      }
      bool fits = false;
      for (const Content& c : allowed) fits = fits || value_in(c, key) == value;
      if (!fits) wrong = "before repair, " + key + " is " + value;
      seen.emplace_back(key, value);
    }
    bool one = !atomic;
    for (const Content& c : allowed) {
      bool all = true;
      for (const auto& [key, value] : seen) all = all && value_in(c, key) == value;
      one = one || all;
    }
    if (!one) wrong = "before repair, a mixture of old and new";
    const Content listed = content(*reader);
    if (std::find(allowed.begin(), allowed.end(), listed) == allowed.end()) {
      wrong = "before repair, list is neither old nor new";
    }
  }
  auto arena = harness::attach(fd, kind);
  bool was_there;
  CHECK(arena->erase("nobody has this key", soon(), was_there) == Status::kOk);  // repairs
  if (auto found = harness::violations(*arena); !found.empty()) wrong = found.front();
  const Content after = content(*arena);
  if (std::find(allowed.begin(), allowed.end(), after) == allowed.end()) {
    wrong = "after repair, the content is neither old nor new";
  }
  bool wrote = false;
  if (arena->upsert({"works", {"again", 5}}, Upsert::kAlways, soon(), wrote) != Status::kOk) {
    wrong = "after repair, it cannot be written";
  }
  close(fd);
  return wrong;
}

struct Scenario {
  const char* name;
  Kind kind;
  Operation prepare;
  Operation operation;
  bool atomic = true;  // readers never see a part of it
  bool grows = false;  // commits memory
};

void replace(Arena& arena, const Content& with) {
  std::vector<Entry> entries;
  for (const auto& [key, value] : with) entries.push_back({key, {value.data(), value.size()}});
  CHECK(arena.replace(entries, "rv", soon()) == Status::kOk);
}

void four(Arena& arena) {
  for (const char* key : {"a", "b", "c", "d"}) put(arena, key, std::string("old ") + key);
  put(arena, "gone", "x");
  drop(arena, "gone");  // free lists and tombstones are not empty
}

// A value that does not fit into the page of heap that a new arena has: the heap grows.
const std::string kLarge(5000, 'L');

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all = {
      {"add", Kind::kStore, four, [](Arena& a) { put(a, "new", "value"); }},
      {"update", Kind::kStore, four, [](Arena& a) { put(a, "b", "a longer value than before"); }},
      {"delete", Kind::kStore, four, [](Arena& a) { drop(a, "b"); }},
      {"add with growth", Kind::kStore, four, [](Arena& a) { put(a, "new", kLarge); }, true,
       true},
      {"add with a new index", Kind::kStore,
       [](Arena& a) {
         four(a);
         // So many that the next one passes the load limit of 1,024 words.
         for (int i = 0; a.size() + a.segment().meta().tombstones < 768; ++i) {
           put(a, "k" + std::to_string(i), "");
         }
       },
       [](Arena& a) { put(a, "new", "value"); }, true, true},
      {"add_many", Kind::kStore, four,
       [](Arena& a) {
         const std::vector<Entry> entries = {{"b", {"1", 1}}, {"new", {"2", 1}}};
         CHECK(a.upsert_many(entries, soon()) == Status::kOk);
       },
       false},
      {"replace", Kind::kStore, four,
       [](Arena& a) {
         replace(a, {{"a", "old a"}, {"b", "changed"}, {"new", "1"}, {"new", "2"}});
       }},
      {"add to a queue", Kind::kFifo, four, [](Arena& a) { put(a, "new", "value"); }},
      {"update in a queue", Kind::kFifo, four, [](Arena& a) { put(a, "b", "new value"); }},
      {"delete in a queue", Kind::kFifo, four, [](Arena& a) { drop(a, "b"); }},
      {"pop", Kind::kFifo, four,
       [](Arena& a) {
         std::vector<Item> items;
         CHECK(a.try_pop(1, soon(), items) == Status::kOk);
       }},
      {"pop_many", Kind::kFifo, four,
       [](Arena& a) {
         std::vector<Item> items;
         CHECK(a.try_pop(2, soon(), items) == Status::kOk);
       },
       false},
      {"put back", Kind::kFifo,
       [](Arena& a) {
         put(a, "old", "it was the first");
         four(a);
         std::vector<Item> items;
         CHECK(a.try_pop(1, soon(), items) == Status::kOk);
       },
       [](Arena& a) {
         bool wrote = false;
         CHECK(a.put_back({"old", {"it was the first", 16}}, 1, soon(), wrote) == Status::kOk);
         CHECK(wrote);
       }},
      {"shut down at once", Kind::kFifo, four,
       [](Arena& a) { CHECK(a.shut_down(true, soon()) == Status::kOk); }, false},
      {"replace of a queue", Kind::kFifo, four,
       [](Arena& a) {
         replace(a, {{"z", "1"}, {"b", "changed"}, {"z", "2"}, {"a", "old a"}});
       }},
  };
  return all;
}

// The content before, after, and after each part of an operation that is not atomic.
std::vector<Content> outcomes(const Scenario& scenario, Arena& before, Arena& after) {
  std::vector<Content> allowed{content(before), content(after)};
  if (scenario.atomic) return allowed;
  Content part = allowed[0];
  if (scenario.kind == Kind::kFifo) {  // taken one by one from the head
    while (part.size() > allowed[1].size() + 1) {
      part.erase(part.begin());
      allowed.push_back(part);
    }
  } else {  // add_many, after its first entry
    for (auto& [key, value] : part) {
      if (key == "b") value = "1";
    }
    allowed.push_back(part);
  }
  return allowed;
}

struct Run {
  int fd, fd_after;
  std::unique_ptr<Arena> arena, after;
  std::vector<Content> allowed;
  std::vector<Range> parts;
  std::vector<Image> images;

  Run(const Scenario& scenario, const Operation& operation) {
    fd = harness::anonymous_file();
    arena = harness::create(fd, scenario.kind, 1 << 20);
    scenario.prepare(*arena);
    fd_after = harness::anonymous_file();
    after = harness::create(fd_after, scenario.kind, 1 << 20);
    scenario.prepare(*after);
    scenario.operation(*after);
    allowed = outcomes(scenario, *arena, *after);
    parts = ranges(arena->segment(), scenario.grows);
    images = step(*arena, parts, operation);
  }
  ~Run() {
    close(fd);
    close(fd_after);
  }
};

}  // namespace

CASE(every_crash_image, "killed at any store of any operation, the arena is old or new, and whole") {
  size_t all = 0;
  for (const Scenario& scenario : scenarios()) {
    Run run(scenario, scenario.operation);
    const Geometry geometry = run.arena->segment().geometry();
    for (size_t i = 0; i < run.images.size(); ++i) {
      const std::string wrong =
          judge(run.images[i], run.parts, geometry, scenario.kind, run.allowed, scenario.atomic);
      if (!wrong.empty()) {
        harness::fail(__FILE__, __LINE__, std::string(scenario.name) + ", image " +
                                              std::to_string(i) + ": " + wrong);
      }
    }
    std::printf("%-24s %4zu images\n", scenario.name, run.images.size());
    all += run.images.size();
  }
  std::printf("%-24s %4zu images\n", "all", all);
}

namespace {

// Images of each scenario (about `samples` of them), each with images (one of `every`) of the
// repair that it needs.
void judge_repairs(size_t samples, size_t every) {
  size_t all_first = 0, all_second = 0;
  for (const Scenario& scenario : scenarios()) {
    if (std::string_view(scenario.name) == "add with a new index") continue;  // long to step
    Run run(scenario, scenario.operation);
    const Geometry geometry = run.arena->segment().geometry();
    size_t first = 0, second = 0;
    for (size_t i = 1; i < run.images.size(); i += run.images.size() / samples + 1) {
      int fd = file_of(run.images[i], run.parts, geometry);
      auto arena = harness::attach(fd, scenario.kind);
      const auto images =
          step(*arena, run.parts, [](Arena& a) { drop(a, "nobody has this key"); }, every);
      ++first;
      for (const Image& image : images) {
        const std::string wrong =
            judge(image, run.parts, geometry, scenario.kind, run.allowed, scenario.atomic);
        if (!wrong.empty()) {
          harness::fail(__FILE__, __LINE__, std::string(scenario.name) + ", repair of image " +
                                                std::to_string(i) + ": " + wrong);
        }
        ++second;
      }
      close(fd);
    }
    std::printf("%-24s %4zu images, %5zu of their repair\n", scenario.name, first, second);
    std::fflush(stdout);
    all_first += first;
    all_second += second;
  }
  std::printf("%-24s %4zu images, %5zu of their repair\n", "all", all_first, all_second);
}

}  // namespace

CASE(every_crash_image_of_repair, "a repair killed at any store is repeated, with the same result") {
  judge_repairs(4, 3);
}

CASE(every_pair_of_crashes, "the same for every image of every operation; takes some ten minutes") {
  judge_repairs(1000, 1);
}

CASE(crash_images_show_planted_faults, "an operation in the wrong order is found out by its images") {
  const Scenario& update = scenarios()[1];
  // Delete, then add: between the two the key is neither old nor new.
  Run run(update, [](Arena& a) {
    drop(a, "b");
    put(a, "b", "a longer value than before");
  });
  const Geometry geometry = run.arena->segment().geometry();
  bool found = false;
  for (const Image& image : run.images) {
    found = found || !judge(image, run.parts, geometry, update.kind, run.allowed, true).empty();
  }
  CHECK(found);
}
