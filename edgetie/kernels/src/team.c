// Threads that stay together: waking them costs more than most tasks of a single token.
//
// The first thread leads: it does the work and publishes parallel tasks. Others claim indices of the
// task in turn and wait for the next one. Nobody waits for a thread that has not claimed an index,
// so that any number of threads may come, early, late or not at all.

#include "team.h"

#include <stdatomic.h>

#if defined(_WIN32)
#include <windows.h>
static void yield_thread(void) { SwitchToThread(); }
static size_t count_processors(void) {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return info.dwNumberOfProcessors;
}
#else
#include <sched.h>
#include <unistd.h>
static void yield_thread(void) { sched_yield(); }
static size_t count_processors(void) {
  const long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count > 0 ? (size_t)count : 64;
}
#endif

enum { PAUSES = 4096, CLAIMED_PART = 8 };

typedef void Task(void *state, size_t index);

typedef struct {
  void (*work)(void *state, const Parallel *);
  void *state;
  atomic_bool has_leader;
  // The task that the leader has published.
  _Atomic(Task *) task;
  _Atomic(void *) task_state;
  atomic_size_t count;
  _Alignas(64) _Atomic uint64_t ticket;  // its number << 32 | indices that nobody has claimed
  _Alignas(64) atomic_size_t finished;   // indices that are done
  _Alignas(64) atomic_bool is_over;
} Team;

static void wait_a_little(unsigned *waits) {
  if (++*waits % PAUSES == 0) yield_thread();
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

// Do some indices of the published task; false if there are none left. What is read of a task
// belongs to the ticket that is changed afterwards: the leader writes the next task when all indices
// are claimed and done.
static bool help(Team *team) {
  uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);
  while ((uint32_t)ticket) {
    Task *task = atomic_load_explicit(&team->task, memory_order_relaxed);
    void *state = atomic_load_explicit(&team->task_state, memory_order_relaxed);
    const size_t count = atomic_load_explicit(&team->count, memory_order_relaxed);
    const size_t left = (uint32_t)ticket, claimed = 1 + left / CLAIMED_PART;
    if (!atomic_compare_exchange_weak_explicit(&team->ticket, &ticket, ticket - claimed,
                                               memory_order_acq_rel, memory_order_acquire))
      continue;
    for (size_t i = count - left; i < count - left + claimed; i++) task(state, i);
    atomic_fetch_add_explicit(&team->finished, claimed, memory_order_release);
    return true;
  }
  return false;
}

static void lead_task(void *context, Task *task, void *state, size_t count) {
  Team *team = context;
  unsigned waits = 0;
  const uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_relaxed);
  atomic_store_explicit(&team->task, task, memory_order_relaxed);
  atomic_store_explicit(&team->task_state, state, memory_order_relaxed);
  atomic_store_explicit(&team->count, count, memory_order_relaxed);
  atomic_store_explicit(&team->finished, 0, memory_order_relaxed);
  atomic_store_explicit(&team->ticket, ((ticket >> 32) + 1) << 32 | count,
                        memory_order_release);
  while (help(team)) {
  }
  while (atomic_load_explicit(&team->finished, memory_order_acquire) < count)
    wait_a_little(&waits);
}

static void join(void *state, size_t thread) {
  Team *team = state;
  unsigned waits = 0;
  (void)thread;
  if (!atomic_exchange(&team->has_leader, true)) {
    const Parallel parallel = {team, lead_task};
    team->work(team->state, &parallel);
    atomic_store_explicit(&team->is_over, true, memory_order_release);
  }
  while (!atomic_load_explicit(&team->is_over, memory_order_acquire))
    if (!help(team)) wait_a_little(&waits);
}

void run_as_team(const Parallel *threads, void (*work)(void *state, const Parallel *), void *state) {
  Team team = {.work = work, .state = state};
  static atomic_size_t processors;
  size_t most = atomic_load_explicit(&processors, memory_order_relaxed);
  if (!most) atomic_store_explicit(&processors, most = count_processors(), memory_order_relaxed);
  threads->run(threads->context, join, &team, most);
}
