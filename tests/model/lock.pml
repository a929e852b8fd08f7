/*
 * The writer lock of an arena: lock.cpp, guard.hpp, Segment::claim_slot and owner_alive, and the
 * place of repair in it, with death at any step. Checked by test_model.py, which also ties the
 * names here to the C++ functions.
 *
 * One step is one access to shared memory or one system call, with the private work behind it.
 * Steps are sequentially consistent. That loses nothing for the lock word (one word: its accesses
 * are in one order anyway, and P6 orders the state behind it) and for the futex (the kernel
 * compares and blocks under a lock of its own). That who reads an owner in the lock word also
 * reads the generation which that owner stored before is assumed.
 *
 * The kernel: kill_9 ends its victim at any step, drops its byte locks and takes it out of its
 * sleep, in one instant. The dead start again as somebody new, or never. Who is stopped is not
 * scheduled: safety is checked for every schedule, progress for the weakly fair ones.
 *
 * Smaller than the code: N processes that make ROUNDS calls and stay alive, idle; SLOTS slots;
 * generations 1..GENERATIONS; one spin of 64; two words of state, of which repair makes one from
 * the other. Time is left out: a slice may end at any moment, and a deadline is a chance to leave.
 * The owner is probed after each slice that ran out, and perhaps at any other turn of lock().
 *
 * What is checked is chosen by -D:
 *   DEATHS=n   at most n kills               GIVE_UPS=n  at most n calls reach their deadline
 *   NO_SLICE   a sleep ends only by a wake   SIGNALS     signals end sleeps, for ever; lock()
 *   FAULT_x    a planted fault                           probes the owner before its first sleep
 *   FROZEN     a waiter may stand between its look and its CAS while generations come round
 */
#ifndef N
#define N 2
#endif
#ifndef SLOTS
#define SLOTS (N + 1)  /* a claim passes over the slot that the lock word names */
#endif
#ifndef GENERATIONS
#define GENERATIONS 2  /* at most 3; 2^17 - 1 in the code */
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef GIVE_UPS
#define GIVE_UPS 0
#endif

#define kLockWaiters 1
#define kLockDirty 2
#define kGenerationBits 2
#define kRead 0
#define kWrite kLockDirty

#define lock_owner(word) ((word) >> 2)
#define slot_of(owner) (((owner) >> kGenerationBits) - 1)
#define generation_of(owner) ((owner) & 3)
#define owner_of(slot, generation) (((slot) + 1) << kGenerationBits | (generation))
#ifdef FAULT_READER_DROPS_DIRTY
#define held_by(owner, hold, found) ((owner) << 2 | (hold))
#else
#define held_by(owner, hold, found) ((owner) << 2 | (hold) | ((found) & kLockDirty))
#endif

/* Shared memory. A new segment is free and DIRTY. */
byte lock_word = kLockDirty;
byte generations[SLOTS];
byte truth, derived = 1;  /* the state is whole if they are equal */

/* The kernel. */
byte byte_lock[SLOTS];  /* 0, or 1 + the process that holds it */
bool asleep[N];
bool dead[N];

/* For the assertions. */
byte holder;     /* 0, or 1 + the living process that has the lock */
byte probed[N];  /* the owner that a waiter has in hand, between its look and its CAS */
byte deaths, given_up;

/* --- futex.hpp, on the lock word ------------------------------------------------------------ */

#if !defined(SIGNALS)
#define probe_or_not if :: probe = true :: probe = false fi
#else
#define probe_or_not probe = true
#endif

inline block() {
  asleep[me] = true;
  /* Who slept a whole slice behind one dead owner does not do so again: it has found out. */
  assert(holder != 0 || slept_behind != lock_owner(seen));
  slept_behind = (holder == 0 -> lock_owner(seen) : 0);
  seen = 0
}

inline futex_wait() {  /* expects `seen` */
#ifdef FAULT_WAIT_WITHOUT_COMPARE
  atomic { block() };
#else
  atomic {
    if
    :: lock_word == seen -> block()
    :: else -> seen = 0; probe_or_not; goto look
    fi
  };
#endif
  if
  :: atomic { !asleep[me] -> slept_behind = 0; probe_or_not; goto look }
#ifndef NO_SLICE
  :: atomic { asleep[me] -> asleep[me] = false; probe = true; goto look }
#endif
#ifdef SIGNALS
  :: atomic { asleep[me] -> asleep[me] = false; slept_behind = 0; goto again }
#endif
  fi
}

inline futex_wake() {  /* one of the sleepers, whichever */
  atomic {
    if
    :: asleep[0] -> asleep[0] = false
    :: asleep[1] -> asleep[1] = false
#if N > 2
    :: asleep[2] -> asleep[2] = false
#endif
    :: else
    fi
  }
}

/* --- segment.cpp ---------------------------------------------------------------------------- */

#ifdef FAULT_CLAIM_NAMED_SLOT
#define named(slot) false
#else
#define named(slot) (lock_owner(lock_word) >> kGenerationBits == (slot) + 1)
#endif

/* Tries all slots, and then, as a caller that got kNoSlot, again. */
inline claim_slot() {
  do
  :: atomic { named(slot) -> slot = (slot + 1) % SLOTS }
  :: !named(slot) ->
#ifdef FAULT_GENERATION_BEFORE_BYTE_LOCK
     generations[slot] = generations[slot] % GENERATIONS + 1;
#endif
     if
     :: atomic { byte_lock[slot] != 0 -> slot = (slot + 1) % SLOTS }
     :: atomic { byte_lock[slot] == 0 -> byte_lock[slot] = me + 1 };
        /* Load and store are one step: the generation is for the holder of the byte to change. */
        atomic {
#ifndef FAULT_GENERATION_BEFORE_BYTE_LOCK
          generations[slot] = generations[slot] % GENERATIONS + 1;
#endif
          id = owner_of(slot, generations[slot]);
          slot = 0;
#ifndef FROZEN
          probed[0] != id && probed[1] != id;
#if N > 2
          probed[2] != id;
#endif
#endif
          /* The word of a dead owner never comes to name a living one. */
          assert(lock_owner(lock_word) != id);
          break
        }
     fi
  od
}

/* Goes to `take` or to `wait`. */
inline owner_alive(owner) {
#ifdef FAULT_SILENCE_IS_DEATH
  goto take;
#endif
#ifndef FAULT_NO_GENERATION_CHECK
  atomic {
    if
    :: generations[slot_of(owner)] != generation_of(owner) -> goto take
    :: else
    fi
  };
#endif
  atomic {  /* byte_held; the kernel does not show us our own lock */
    if
    :: byte_lock[slot_of(owner)] == 0 || byte_lock[slot_of(owner)] == me + 1 -> goto take
    :: else ->
       /* Taken for alive, while somebody claims its slot, between the two steps of a claim. */
       slept_behind = (holder == 0 -> 0 : slept_behind);
       goto wait
    fi
  }
}

/* --- lock.cpp ------------------------------------------------------------------------------- */

inline enter() {
  assert(holder == 0);  /* mutual exclusion */
  holder = me + 1;
  clean = (seen & kLockDirty) == 0;
  slept_behind = 0;
  probed[me] = 0;
  seen = 0
}

inline try_lock() {
  atomic {
    seen = lock_word;
    if
    :: lock_owner(seen) != 0 -> seen = 0; probe_or_not; goto look
    :: else
    fi
  };
  atomic {
    if
    :: lock_word == seen ->
       lock_word = held_by(id, hold, seen) | (seen & kLockWaiters);
       enter();
       goto entered
    :: else -> seen = 0; probe_or_not
    fi
  }
}

#ifdef FAULT_TAKEOVER_WITHOUT_COMPARE
#define expected_or_not(word) true
#else
#define expected_or_not(word) (lock_word == (word))
#endif
#ifdef FAULT_SLEEPER_DROPS_WAITERS
#define waiters_or_not 0
#else
#define waiters_or_not kLockWaiters
#endif

/* Its claim_slot and its spins do again what Guard has just done, and are left out. */
inline lock() {
  atomic {
    seen = lock_word;
    if
    :: lock_owner(seen) == 0 -> probe = false; goto take
    :: lock_owner(seen) != 0 && !probe -> goto wait
    :: lock_owner(seen) != 0 && probe -> probe = false; probed[me] = lock_owner(seen)
    fi
  };
  owner_alive(lock_owner(seen));
take:
  atomic {
    probed[me] = 0;
    if
    :: expected_or_not(seen) ->
       lock_word = held_by(id, hold, seen) | waiters_or_not;
       enter();
       goto entered
    :: else -> seen = 0; goto look
    fi
  };
wait:
  atomic {
    probed[me] = 0;
    if
    :: given_up < GIVE_UPS -> given_up++; slept_behind = 0; seen = 0; hold = 0; goto end_idle
    :: true
    fi;
    if
    :: (seen & kLockWaiters) != 0
    :: (seen & kLockWaiters) == 0 && lock_word == seen ->
       seen = seen | kLockWaiters;
       lock_word = seen
    :: (seen & kLockWaiters) == 0 && lock_word != seen -> seen = 0; goto look
    fi
  };
  futex_wait()
}

inline unlock() {
#ifdef FAULT_UNLOCK_BY_LOAD_AND_STORE
  seen = lock_word;
#endif
  atomic {
#ifndef FAULT_UNLOCK_BY_LOAD_AND_STORE
    seen = lock_word;
#endif
    assert(holder == me + 1 && lock_owner(lock_word) == id);  /* the living are never robbed */
    lock_word = (clean -> 0 : kLockDirty);
    holder = 0;
    clean = false;
    hold = 0;
#ifdef FAULT_UNLOCK_WITHOUT_WAKE
    seen = 0;
#endif
    if
    :: (seen & kLockWaiters) == 0 -> seen = 0; goto end_idle
    :: else -> seen = 0
    fi
  };
  futex_wake()
}

/* --- repair.cpp ----------------------------------------------------------------------------- */

inline repair_locked() {
#ifdef FAULT_CLEAN_BEFORE_REPAIR_ENDS
  lock_word = lock_word & ~kLockDirty;
#endif
  derived = 2;
  if
  :: atomic { derived = truth; clean = true }
  :: goto leave  /* kNoMemory, kCorrupt: left to the next writer */
  fi
}

/* --- guard.hpp, arena.cpp ------------------------------------------------------------------- */

inline Guard() {
  if
  :: id == 0 -> claim_slot()
  :: else
  fi;
again:  /* blocking() of bind.cpp, after kInterrupted */
  try_lock();
look:
  lock();
entered:
  if
  :: !clean && hold == kWrite -> repair_locked()
  :: else
  fi
}

inline upsert() {
  assert(truth == derived);  /* who writes finds whole state, or has repaired it */
  truth = 1 - truth;
  if
  :: derived = truth
  :: clean = false  /* kCorrupt, found half way */
  fi
}

inline copy() {
  assert(!clean || truth == derived)  /* DIRTY: it goes by the truth alone */
}

active [N] proctype process() {
  byte me = _pid, id, slot, seen, hold, rounds, slept_behind;
  bool clean, probe;
start:
  {
    rounds = 0;
end_idle:
    atomic {
      rounds < ROUNDS -> rounds++;
#ifdef WRITERS
      hold = kWrite
#else
      if :: hold = kWrite :: hold = kRead fi
#endif
    };
    Guard();
    if
    :: hold == kWrite -> upsert()
    :: hold == kRead -> copy()
    fi;
leave:
    unlock();
    goto end_idle
  } unless {
    atomic {
      dead[me];
      id = 0; slot = 0; seen = 0; hold = 0; rounds = 0; slept_behind = 0;
      clean = false; probe = false; probed[me] = 0;
      if
#ifndef FINAL
      :: dead[me] = false; goto start  /* somebody new */
#endif
      :: true                          /* nobody, ever */
      fi
    }
  }
}

#if DEATHS > 0
inline kill(victim) {
  dead[victim] = true;
  asleep[victim] = false;
  for (i : 0 .. SLOTS - 1) {
    byte_lock[i] = (byte_lock[i] == victim + 1 -> 0 : byte_lock[i])
  };
  i = 0;
  holder = (holder == victim + 1 -> 0 : holder);
  deaths++
}

active proctype kill_9() {
  byte i;
end_kills:
  do
  :: atomic { deaths < DEATHS && !dead[0] -> kill(0) }
  :: atomic { deaths < DEATHS && !dead[1] -> kill(1) }
#if N > 2
  :: atomic { deaths < DEATHS && !dead[2] -> kill(2) }
#endif
  :: atomic { deaths < DEATHS -> deaths++ }  /* one less */
  od
}
#endif
