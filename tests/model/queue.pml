/*
 * How the consumers of a FIFO sleep and are woken: notify_ready, wait_ready, try_pop, upsert and
 * shut_down of arena.cpp, the wake-up of repair, and the loop of take in bind.cpp, with death at
 * any step. Checked by test_model.py, which also ties the names here to the C++ functions.
 *
 * One step is one access to shared memory or one system call, with the private work behind it.
 * Steps are sequentially consistent: between an item and the look at the flag, and between the
 * flag and the look for an item, the code has seq_cst fences (P7); the rest is under the lock (P6).
 *
 * The lock is what lock.pml shows it to be: one owner, and behind a dead one it is DIRTY. The
 * queue is the number of LIVE records, `truth`, and the figure `live`, which a crash leaves behind.
 *
 * Smaller than the code: PRODUCERS processes add ITEMS items each; CONSUMERS processes pop one item
 * at a time, at most POPS each, and then do other work. The dead stay dead. Time is left out: a
 * slice may end at any moment.
 *
 * What is checked is chosen by -D:
 *   DEATHS=n   at most n kills, none of consumer 0, which pops for ever
 *   NO_SLICE   a sleep ends only by a wake
 *   LEAVE      a consumer may reach its deadline where the code looks at it
 *   SIGNALS    signals end sleeps, for ever
 *   SHUT_DOWN  a producer shuts the queue down when it has added its items
 *   FAULT_x    a planted fault
 */
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef ITEMS
#define ITEMS 1
#endif
#ifndef POPS
#define POPS 2
#endif
#ifndef DEATHS
#define DEATHS 0
#endif

/* Shared memory. */
byte lock;    /* 0, or 1 + its owner */
bool kLockDirty;
byte truth, live;
bool is_shut_down;
byte ready_word;
bool ready_sleepers;

/* The kernel. */
bool asleep[CONSUMERS];
bool dead[CONSUMERS + PRODUCERS];

/* For the assertions. */
byte added, batons, woken, deaths;
bool told;  /* consumer 0: kShutDown */

/* --- futex.hpp, on ready_word --------------------------------------------------------------- */

inline futex_wait() {  /* expects `word` */
  atomic {
    if
    :: ready_word == word -> asleep[me] = true
    :: else -> word = 0; goto rested
    fi
  };
end_asleep:
  if
  :: atomic { !asleep[me] -> word = 0 }
#ifndef NO_SLICE
  :: atomic { asleep[me] -> asleep[me] = false; word = 0 }
#endif
#ifdef SIGNALS
  :: atomic { asleep[me] -> asleep[me] = false; word = 0; interrupted = true }
#endif
  fi
}

inline wake(i) {
  asleep[i] = false;
  woken++
}

inline futex_wake_1() {
  atomic {
    if
    :: asleep[0] -> wake(0)
#if CONSUMERS > 1
    :: asleep[1] -> wake(1)
#endif
#if CONSUMERS > 2
    :: asleep[2] -> wake(2)
#endif
    :: else
    fi;
    assert(woken <= added + batons)  /* no herd */
  }
}

inline futex_wake_all() {
  d_step {
    for (i : 0 .. CONSUMERS - 1) { asleep[i] = false };
    i = 0
  }
}

/* --- lock.cpp, guard.hpp, repair.cpp -------------------------------------------------------- */

inline repair_locked() {
  live = truth;
  ready_word++;
  futex_wake_all()
}

inline Guard() {
  atomic {
    lock == 0;
    lock = me + 1;
    found_dirty = kLockDirty;
    kLockDirty = true
  };
  if
  :: atomic { found_dirty -> found_dirty = false }; repair_locked()
  :: atomic { !found_dirty -> assert(live == truth) }
  fi
}

#define unlock lock = 0; kLockDirty = false

/* --- arena.cpp ------------------------------------------------------------------------------ */

inline notify_ready() {
  if
  :: ready_sleepers == 0
  :: ready_sleepers != 0 ->
     if
     :: ready_sleepers == 0
     :: atomic { ready_sleepers != 0 -> ready_sleepers = 0 };
#ifndef FAULT_WORD_NOT_MOVED
        ready_word++;
#endif
#ifdef FAULT_WAKE_ALL
        atomic {
          woken = woken + asleep[0] + asleep[1];
          futex_wake_all();
          assert(woken <= added + batons)
        }
#else
        futex_wake_1()
#endif
     fi
  fi
}

inline upsert() {
#ifdef FAULT_NOTIFY_BEFORE_THE_ITEM
  added++;
  notify_ready();
  Guard();
  truth++;
#else
  Guard();
  atomic { truth++; added++ };
#endif
  live++;
  atomic { unlock };
#ifndef FAULT_NOTIFY_BEFORE_THE_ITEM
  notify_ready()
#endif
}

inline shut_down() {
  Guard();
  is_shut_down = true;
  atomic { unlock };
  ready_word++;
  futex_wake_all()
}

/* Goes to `taken`, `kEmpty` or `kShutDown`. */
inline try_pop() {
  atomic {
    if
    :: live != 0 -> goto guarded
    :: else
    fi
  };
  atomic {
    if
    :: is_shut_down -> goto guarded
    :: else
    fi
  };
  atomic {
    if
    :: kLockDirty -> goto guarded  /* first with deadline 0, which ends here: once more */
    :: else -> goto kEmpty
    fi
  };
guarded:
  Guard();
  atomic {
    if
    :: truth == 0 && is_shut_down -> unlock; goto kShutDown
    :: truth == 0 && !is_shut_down -> unlock; goto kEmpty
    :: else -> truth--
    fi
  };
  live--;
  atomic {
    unlock;
    if
    :: truth == 0 -> goto taken
    :: else -> batons++
    fi
  };
#ifndef FAULT_NO_BATON
  notify_ready()
#endif
}

/* Ends with kOk, or `interrupted`. */
inline wait_ready() {
#ifdef LEAVE
  if
  :: goto left
  :: true
  fi;
#endif
#ifndef FAULT_WORD_AFTER_THE_LOOK
  word = ready_word;
#endif
#ifndef FAULT_FLAG_AFTER_THE_LOOK
  ready_sleepers = true;
#endif
  atomic {
    if
    :: live != 0 -> word = 0; goto pop
    :: else
    fi
  };
  atomic {
    if
    :: is_shut_down -> word = 0; goto pop
    :: else
    fi
  };
  atomic {
    if
    :: kLockDirty -> word = 0; goto pop
    :: else
    fi
  };
#ifdef FAULT_WORD_AFTER_THE_LOOK
  word = ready_word;
#endif
#ifdef FAULT_FLAG_AFTER_THE_LOOK
  ready_sleepers = true;
#endif
  futex_wait();
rested:
#ifndef FAULT_NO_FLAG_AFTER_THE_SLEEP
  ready_sleepers = true
#else
  true
#endif
}

/* --- bind.cpp ------------------------------------------------------------------------------- */

active [CONSUMERS] proctype take() {
  byte me = _pid, word, pops, i;
  bool found_dirty, interrupted;
  {
    pops = 0;
pop:
    try_pop();
taken:
    atomic {
      if
#if DEATHS > 0 || defined(SHUT_DOWN)
      :: me == 0 -> goto pop
#endif
      :: pops + 1 < POPS -> pops++; goto pop
      :: pops + 1 == POPS -> goto left
      fi
    };
kEmpty:
    wait_ready();
    atomic {
      if
      :: !interrupted -> goto pop
      :: interrupted -> interrupted = false; goto kEmpty  /* blocking() calls wait_ready again */
      fi
    };
kShutDown:
    told = told || me == 0;
left:
    word = 0
  } unless {
    dead[me]
  }
}

active [PRODUCERS] proctype producer() {
  byte me = _pid, adds, i;
  bool found_dirty;
  {
    do
    :: adds < ITEMS -> adds++; upsert()
    :: adds == ITEMS -> break
    od;
#ifdef SHUT_DOWN
    if
    :: me == CONSUMERS -> shut_down()
    :: me != CONSUMERS
    fi
#endif
  } unless {
    dead[me]
  }
}

#ifdef NO_SLICE
active proctype quiet() {
end:
  timeout ->
#ifdef SHUT_DOWN
  assert(!asleep[0] && !asleep[1])  /* all have been told */
#else
  assert(truth == 0 || (!asleep[0] && !asleep[1]))  /* no wake-up was lost */
#endif
}
#endif

#if DEATHS > 0
inline kill(victim) {
  dead[victim] = true;
  lock = (lock == victim + 1 -> 0 : lock);  /* and stays DIRTY */
  deaths++
}

active proctype kill_9() {
end_kills:
  do
  :: atomic { deaths < DEATHS && !dead[1] -> kill(1); asleep[1] = false }
  :: atomic { deaths < DEATHS && !dead[2] -> kill(2) }
  :: atomic { deaths < DEATHS && !dead[3] -> kill(3) }
  :: atomic { deaths < DEATHS -> deaths++ }  /* one less */
  od
}
#endif
