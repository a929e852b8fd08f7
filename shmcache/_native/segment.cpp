#include "segment.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "futex.hpp"
#include "lock.hpp"

namespace shmcache {
namespace {

// Written before anything else, so that a half-made segment is told from a foreign file.
constexpr uint64_t kCreating = 0x3067686361636d68;
// One fallocate call: small enough that a storm of signals cannot starve it.
constexpr uint64_t kCommitChunk = 1 << 20;
// How often at most a handle asks what its name stands for.
constexpr uint64_t kLookNs = 50'000'000;
constexpr const char* kShmDirectory = "/dev/shm";

// Every Segment of this process, for the fork handler. One mutex also guards slot claims: the
// prepare handler takes it, so a child never inherits it held.
struct Registry {
  std::mutex mutex;
  std::vector<Segment*> segments;
};

// Leaked on purpose: no destructor may run while another thread is inside a call at exit.
Registry& registry() {
  static Registry* instance = [] {
    auto* made = new Registry;
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] {
                     for (Segment* segment : registry().segments) segment->child_after_fork();
                     registry().mutex.unlock();
                   });
    return made;
  }();
  return *instance;
}

bool set_byte_lock(int fd, short type, uint64_t byte) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = 1;
  int rc;
  do {
    rc = fcntl(fd, F_OFD_SETLK, &lock);
  } while (rc != 0 && errno == EINTR);
  return rc == 0;
}

// Whether another description holds a lock on `byte` that a write lock would conflict with.
bool byte_held(int fd, uint64_t byte) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = 1;
  // An error would say "held": to take a living owner for dead is the one mistake not to make.
  return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

// A new open file description of the inode behind `fd`; works for unlinked files too.
int reopen(int fd) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return open(path, O_RDWR | O_CLOEXEC);
}

Status system_error(Finding& finding) {
  finding.error = errno;
  return Status::kSystem;
}

Status check_file(int fd, uint32_t trusted_uid, Finding& finding, struct stat& st) {
  if (fstat(fd, &st) != 0) return system_error(finding);
  finding.uid = st.st_uid;
  finding.mode = st.st_mode & 07777;
  // Also when we are root: then a stranger's file could do the more harm.
  const bool trusted_owner =
      st.st_uid == geteuid() || st.st_uid == 0 || st.st_uid == trusted_uid;
  if (!S_ISREG(st.st_mode) || !trusted_owner || (st.st_mode & 0002) != 0 || st.st_nlink > 1) {
    return Status::kInsecure;
  }
  return Status::kOk;
}

// The first bytes of the file: 0 if there are none yet.
ssize_t load_header(int fd, Header& header, uint64_t& magic) {
  static_assert(std::is_trivially_destructible_v<Header>);
  std::memset(static_cast<void*>(&header), 0, sizeof header);
  const ssize_t got = pread(fd, static_cast<void*>(&header), sizeof header, 0);
  magic = got >= 8 ? header.magic.load(std::memory_order_relaxed) : 0;
  return got;
}

// Read and validate the header of a file that nobody has mapped yet (pread cannot fault).
Status read_header(int fd, int lock_fd, uint32_t trusted_uid, Header& header, Finding& finding) {
  uint64_t magic = 0;
  ssize_t got = load_header(fd, header, magic);
  if (got == 0 || magic == kCreating) {
    if (byte_held(lock_fd, kInitByte)) return Status::kBusy;
    // Free by now, perhaps because it has just been finished.
    got = load_header(fd, header, magic);
    if (got == 0 || magic == kCreating) return Status::kUnfinished;
  }
  // After the header: a finished one has its final size.
  struct stat st {};
  if (Status s = check_file(fd, trusted_uid, finding, st); s != Status::kOk) return s;
  if (got < static_cast<ssize_t>(sizeof header) || magic != kMagic) return Status::kForeign;
  finding.layout = header.layout_version;
  if (header.layout_version != kLayoutVersion || header.page_size != kPage ||
      header.record_size != sizeof(Record)) {
    return Status::kWrongLayout;
  }
  finding.kind = header.kind;
  std::memcpy(finding.codec, header.codec, kCodecNameSize);
  finding.codec[kCodecNameSize - 1] = '\0';
  if ((header.kind != Kind::kStore && header.kind != Kind::kIndexer && !has_queue(header.kind)) ||
      header.capacity < kMinCapacity || header.capacity > kMaxCapacity) {
    return Status::kCorrupt;
  }
  finding.wanted = Geometry::of(header.kind, header.capacity).file_size;
  finding.available = static_cast<uint64_t>(st.st_size);
  // A peer that truncated the file: mapping it would fault.
  if (header.file_size != finding.wanted || finding.available != finding.wanted) {
    return Status::kCorrupt;
  }
  return Status::kOk;
}

}  // namespace

Status Segment::open_descriptors(int fd, Finding& finding) {
  fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  struct stat st {};
  if (fd_ < 0 || fstat(fd_, &st) != 0) return system_error(finding);
  device_ = st.st_dev;
  inode_ = st.st_ino;
  lock_fd_ = reopen(fd_);
  if (lock_fd_ < 0) return system_error(finding);
  return Status::kOk;
}

Status Segment::map(Finding& finding) {
  const int data = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
  void* base = mmap(nullptr, geometry_.file_size, data, MAP_SHARED | MAP_NORESERVE, fd_, 0);
  if (base == MAP_FAILED) return system_error(finding);
  base_ = static_cast<std::byte*>(base);
  Registry& all = registry();
  {
    std::lock_guard guard(all.mutex);
    watched_ = watch_map(base_, geometry_.file_size);  // before the first touch
    all.segments.push_back(this);
  }
  if (!writable_ && mprotect(base_ + geometry_.control, geometry_.meta - geometry_.control,
                             PROT_READ | PROT_WRITE) != 0) {
    return system_error(finding);
  }
  // A core dump of a process that holds the lock must not take minutes.
  madvise(base_, geometry_.file_size, MADV_DONTDUMP);
  hash_ = SipHash13(header().hash_seed[0], header().hash_seed[1]);
  return Status::kOk;
}

Status Segment::create(int fd, const char* shm_name, Kind kind, uint64_t capacity,
                       std::string_view codec, uint32_t mode,
                       const std::vector<std::string>& indexes, uint64_t max_attempts,
                       std::unique_ptr<Segment>& out, Finding& finding) {
  capacity = round_up(capacity, kPage);
  finding.wanted = capacity;
  finding.available = kMinCapacity;
  if (capacity < kMinCapacity) return Status::kTooSmall;
  finding.available = kMaxCapacity;
  if (capacity > kMaxCapacity) return Status::kTooBig;
  struct statvfs vfs {};
  if (fstatvfs(fd, &vfs) != 0) return system_error(finding);
  finding.available = static_cast<uint64_t>(vfs.f_blocks) * vfs.f_frsize;
  // 0 blocks: a tmpfs mounted without a limit.
  if (finding.available != 0 && capacity > finding.available) return Status::kTooBig;
  struct stat st {};
  if (Status s = check_file(fd, kNobody, finding, st); s != Status::kOk) return s;

  std::unique_ptr<Segment> made(new Segment);
  made->path_ = kShmDirectory + std::string(shm_name);
  made->kind_ = kind;
  made->capacity_ = capacity;
  made->writable_ = true;
  made->geometry_ = Geometry::of(kind, capacity);
  if (Status s = made->open_descriptors(fd, finding); s != Status::kOk) return s;
  if (!set_byte_lock(made->lock_fd_, F_WRLCK, kInitByte)) return Status::kBusy;
  uint64_t magic = 0;
  const ssize_t got = pread(fd, &magic, sizeof magic, 0);
  if (got != 0 && magic != kCreating) {
    return got == sizeof magic && magic == kMagic ? Status::kExists : Status::kForeign;
  }
  if (fchmod(fd, mode) != 0) return system_error(finding);
  Status status = made->initialise(capacity, codec, indexes, max_attempts, finding);
  if (status != Status::kOk) {
    (void)!ftruncate(fd, 0);  // who has it open already finds it unfinished
    struct stat named {};
    if (stat(made->path_.c_str(), &named) == 0 && named.st_dev == made->device_ &&
        named.st_ino == made->inode_) {
      shm_unlink(shm_name);
    }
    return status;
  }
  set_byte_lock(made->lock_fd_, F_RDLCK, kAttachByte);
  set_byte_lock(made->lock_fd_, F_UNLCK, kInitByte);
  out = std::move(made);
  return Status::kOk;
}

Status Segment::initialise(uint64_t capacity, std::string_view codec,
                           const std::vector<std::string>& indexes, uint64_t max_attempts,
                           Finding& finding) {
  const Geometry& g = geometry_;
  struct rlimit limit {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      limit.rlim_cur < g.file_size) {
    finding.wanted = g.file_size;
    finding.available = limit.rlim_cur;
    finding.error = EFBIG;
    return Status::kNoSpace;
  }
  if (ftruncate(fd_, 0) != 0 || pwrite(fd_, &kCreating, sizeof kCreating, 0) != sizeof kCreating ||
      ftruncate(fd_, static_cast<off_t>(g.file_size)) != 0) {
    finding.error = errno;
    return errno == ENOSPC || errno == EFBIG ? Status::kNoSpace : Status::kSystem;
  }
  const uint64_t index_bytes = uint64_t{8} << kIndexMinLog2;
  struct {
    uint64_t offset, size;
  } const regions[] = {{0, g.index[0]},  // header, control, meta, names, ring
                       {g.index[0], index_bytes},
                       {g.index[1], index_bytes},
                       {g.buckets, g.buckets_max == 0 ? 0 : kPage},
                       {g.records, kPage},
                       {g.heap, kPage}};
  for (auto [offset, size] : regions) {
    if (size == 0) continue;
    int rc;
    do {
      rc = posix_fallocate(fd_, static_cast<off_t>(offset), static_cast<off_t>(size));
    } while (rc == EINTR);
    if (rc != 0) {
      finding.wanted = g.index[0] + 2 * index_bytes + 3 * kPage;
      struct statvfs vfs {};
      if (fstatvfs(fd_, &vfs) == 0) {
        finding.available = static_cast<uint64_t>(vfs.f_bavail) * vfs.f_frsize;
      }
      finding.error = ENOSPC;
      return Status::kNoSpace;
    }
  }
  if (Status s = map(finding); s != Status::kOk) return s;

  Header& h = header();
  h.layout_version = kLayoutVersion;
  h.page_size = kPage;
  h.kind = kind_;
  h.record_size = sizeof(Record);
  h.capacity = capacity;
  h.max_attempts = max_attempts;
  h.file_size = g.file_size;
  struct timespec now {};
  clock_gettime(CLOCK_REALTIME, &now);
  h.created_unix_ns =
      static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
  uint64_t random[3];
  if (getrandom(random, sizeof random, 0) != sizeof random) return system_error(finding);
  h.hash_seed[0] = random[0];
  h.hash_seed[1] = random[1];
  h.segment_id = random[2];
  std::memcpy(h.codec, codec.data(), std::min(codec.size(), kCodecNameSize - 1));
  hash_ = SipHash13(random[0], random[1]);

  // The pages are zero; only what is not zero when empty is set.
  Meta& m = meta();
  const auto count = static_cast<uint32_t>(indexes.size());
  for (uint32_t i = 0; i < count; ++i) set_index_name(i, indexes[i]);
  m.root.store(Root{1, kIndexMinLog2, 0, count}.pack(), std::memory_order_relaxed);
  m.index_committed.store(index_bytes, std::memory_order_relaxed);
  m.records_committed.store(kPage / sizeof(Record), std::memory_order_relaxed);
  m.heap_committed.store(kPage, std::memory_order_relaxed);
  m.buckets_committed.store(g.buckets_max == 0 ? 0 : kPage, std::memory_order_relaxed);
  m.free_record.store(kNoRecord, std::memory_order_relaxed);
  // Lists and heap are formatted by a repair of the empty arena: one way to do it, not two.
  m.next_time.store(1, std::memory_order_relaxed);
  control().lock.store(kLockDirty, std::memory_order_relaxed);
  h.magic.store(kMagic, std::memory_order_release);
  return Status::kOk;
}

Status Segment::attach(int fd, const char* shm_name, Kind kind, std::string_view codec,
                       bool writable, uint32_t trusted_uid, std::unique_ptr<Segment>& out,
                       Finding& finding) {
  std::unique_ptr<Segment> made(new Segment);
  made->path_ = kShmDirectory + std::string(shm_name);
  if (Status s = made->open_descriptors(fd, finding); s != Status::kOk) return s;
  Header header;
  if (Status s = read_header(fd, made->lock_fd_, trusted_uid, header, finding);
      s != Status::kOk) {
    return s;
  }
  if (header.kind != kind) return Status::kWrongKind;
  if (codec != finding.codec) return Status::kWrongCodec;
  made->kind_ = kind;
  made->capacity_ = header.capacity;
  made->writable_ = writable;
  made->geometry_ = Geometry::of(kind, header.capacity);
  if (Status s = made->map(finding); s != Status::kOk) return s;
  if (made->lost()) return Status::kLost;  // truncated since the header was read
  set_byte_lock(made->lock_fd_, F_RDLCK, kAttachByte);
  out = std::move(made);
  return Status::kOk;
}

Status Segment::inspect(int fd, Finding& finding, uint64_t& capacity, bool& in_use) {
  Segment probe;
  if (Status s = probe.open_descriptors(fd, finding); s != Status::kOk) return s;
  Header header;
  struct stat st {};
  if (fstat(fd, &st) != 0) return system_error(finding);
  // Whoever owns it: nothing is mapped and nothing of it believed.
  Status status = read_header(fd, probe.lock_fd_, st.st_uid, header, finding);
  in_use = byte_held(probe.lock_fd_, kAttachByte) || byte_held(probe.lock_fd_, kInitByte);
  capacity = status == Status::kOk ? header.capacity : 0;
  return status;
}

void Segment::mark_unlinked(int fd) {
  Header header;
  uint64_t magic = 0;
  if (load_header(fd, header, magic) < static_cast<ssize_t>(sizeof header) || magic != kMagic ||
      header.layout_version != kLayoutVersion || header.capacity < kMinCapacity ||
      header.capacity > kMaxCapacity) {
    return;
  }
  const uint64_t meta = Geometry::of(header.kind, header.capacity).meta;
  const uint32_t yes = 1;
  (void)!pwrite(fd, &yes, sizeof yes, static_cast<off_t>(meta + offsetof(Meta, unlinked)));
}

bool Segment::superseded() {
  if (superseded_.load(std::memory_order_relaxed)) return true;
  const uint64_t now = coarse_now_ns();
  if (now < next_look_ns_.load(std::memory_order_relaxed)) return false;
  next_look_ns_.store(now + kLookNs, std::memory_order_relaxed);
  struct stat named {};
  // No name, or of something that cannot be an arena: nobody attaches to another one by it.
  if (lstat(path_.c_str(), &named) != 0 || !S_ISREG(named.st_mode)) return false;
  // The descriptor that we hold keeps the inode, so its number is not given to another file.
  if (named.st_dev == device_ && named.st_ino == inode_) return false;
  superseded_.store(true, std::memory_order_relaxed);
  return true;
}

Segment::~Segment() {
  if (base_ != nullptr) {
    Registry& all = registry();
    std::lock_guard guard(all.mutex);
    std::erase(all.segments, this);
    if (uint32_t id = owner_id(); id != 0) {
      slot((id >> kGenerationBits) - 1).pid.store(0, std::memory_order_relaxed);
    }
    unwatch_map(watched_);  // last: the page of the slot may be gone
    munmap(base_, geometry_.file_size);
  }
  if (lock_fd_ >= 0) close(lock_fd_);
  if (fd_ >= 0) close(fd_);
}

void Segment::child_after_fork() {
  // Async-signal-safe calls only. If a descriptor cannot be had now, claim_slot tries again.
  owner_id_.store(0, std::memory_order_release);
  reflector_.store(false, std::memory_order_release);
  if (lock_fd_ >= 0) close(lock_fd_);
  lock_fd_ = reopen(fd_);
  if (lock_fd_ >= 0) set_byte_lock(lock_fd_, F_RDLCK, kAttachByte);
}

uint64_t Segment::committed() const {
  const Meta& m = meta();
  return geometry_.index[0] + 2 * m.index_committed.load(std::memory_order_acquire) +
         m.records_committed.load(std::memory_order_acquire) * sizeof(Record) +
         m.heap_committed.load(std::memory_order_acquire) +
         m.buckets_committed.load(std::memory_order_acquire);
}

Status Segment::commit(uint64_t offset, uint64_t size, uint64_t keep) {
  if (committed() + size + keep > capacity_) return Status::kArenaFull;
  for (uint64_t done = 0; done < size;) {
    const uint64_t chunk = std::min(kCommitChunk, size - done);
    int rc;
    do {
      rc = fallocate(fd_, 0, static_cast<off_t>(offset + done), static_cast<off_t>(chunk));
    } while (rc != 0 && errno == EINTR);
    if (rc != 0) return Status::kNoSpace;
    done += chunk;
  }
  return Status::kOk;
}

Status Segment::claim_slot() {
  if (owner_id() != 0) return Status::kOk;
  std::lock_guard guard(registry().mutex);
  if (owner_id() != 0) return Status::kOk;
  if (lock_fd_ < 0) {
    lock_fd_ = reopen(fd_);
    if (lock_fd_ < 0) return Status::kSystem;
    set_byte_lock(lock_fd_, F_RDLCK, kAttachByte);
  }
  for (uint32_t i = 0; i < kOwnerSlots; ++i) {
    // A dead owner's slot that the lock still names is left to the one who repairs.
    if (lock_owner(control().lock.load(std::memory_order_relaxed)) >> kGenerationBits == i + 1) continue;
    // The byte lock first, the slot after: whoever finds the slot's generation ours finds the
    // byte held, and one generation never has two living owners.
    if (!set_byte_lock(lock_fd_, F_WRLCK, kOwnerBytes + i)) continue;
    OwnerSlot& mine = slot(i);
    uint32_t generation = (mine.generation.load(std::memory_order_relaxed) + 1) & kGenerationMask;
    if (generation == 0) generation = 1;
    mine.generation.store(generation, std::memory_order_relaxed);
    mine.pops.store(0, std::memory_order_relaxed);
    mine.pid.store(static_cast<uint32_t>(getpid()), std::memory_order_release);
    owner_id_.store((i + 1) << kGenerationBits | generation, std::memory_order_release);
    return Status::kOk;
  }
  return Status::kNoSlot;
}

bool Segment::owner_alive(uint32_t id) const {
  if (id == owner_id()) return true;  // another thread of ours; GETLK does not see our own locks
  const uint32_t number = (id >> kGenerationBits) - 1;
  if (number >= kOwnerSlots) return false;  // no such owner: a damaged word, take it over
  if (slot(number).generation.load(std::memory_order_relaxed) != (id & kGenerationMask)) {
    return false;  // the slot has a later owner, so this one is gone
  }
  return byte_held(lock_fd_, kOwnerBytes + number);
}

bool Segment::claim_reflector() {
  std::lock_guard guard(registry().mutex);
  if (lock_fd_ < 0) {  // a forked child that could not have a descriptor
    lock_fd_ = reopen(fd_);
    if (lock_fd_ < 0) return false;
    set_byte_lock(lock_fd_, F_RDLCK, kAttachByte);
  }
  // Our own lock does not refuse us.
  if (is_reflector() || !set_byte_lock(lock_fd_, F_WRLCK, kReflectorByte)) return false;
  reflector_.store(true, std::memory_order_release);
  return true;
}

void Segment::release_reflector() {
  std::lock_guard guard(registry().mutex);
  if (!is_reflector()) return;
  reflector_.store(false, std::memory_order_release);
  set_byte_lock(lock_fd_, F_UNLCK, kReflectorByte);
}

bool Segment::reflector_alive() const {
  return is_reflector() || byte_held(lock_fd_, kReflectorByte);
}

std::string Segment::index_name(uint32_t number) const {
  std::string name(kIndexNameSize, '\0');
  const uint64_t offset = geometry_.names + number * kIndexNameSize;
  copy_out(name.data(), at<uint64_t>(offset), kIndexNameSize);
  name.resize(std::min(name.find('\0'), kIndexNameSize));
  return name;
}

void Segment::set_index_name(uint32_t number, const std::string& name) {
  char text[kIndexNameSize] = {};
  std::memcpy(text, name.data(), std::min(name.size(), kIndexNameSize - 1));
  copy_in(at<uint64_t>(geometry_.names + number * kIndexNameSize), text, kIndexNameSize);
}

uint32_t Segment::owner_pid(uint32_t id) const {
  const uint32_t number = (id >> kGenerationBits) - 1;
  // A later owner of the slot has nothing to do with it.
  return number < kOwnerSlots && slot(number).generation.load(std::memory_order_relaxed) ==
                                     (id & kGenerationMask)
             ? slot(number).pid.load(std::memory_order_relaxed)
             : 0;
}

std::vector<Segment::Owner> Segment::owners() const {
  std::vector<Owner> living;
  for (uint32_t i = 0; i < kOwnerSlots; ++i) {
    const uint32_t pid = slot(i).pid.load(std::memory_order_acquire);
    if (pid == 0) continue;  // who closes a handle says so, who is killed does not
    const bool ours = owner_id() >> kGenerationBits == i + 1;
    if (!ours && !byte_held(lock_fd_, kOwnerBytes + i)) continue;
    living.push_back({pid, slot(i).pops.load(std::memory_order_relaxed)});
  }
  return living;
}

}  // namespace shmcache
