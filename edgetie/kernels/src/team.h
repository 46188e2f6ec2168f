// Threads that stay together for several parallel tasks, one after the other.

#ifndef EDGETIE_TEAM_H
#define EDGETIE_TEAM_H

#include "kernels.h"

// Call work(state, parallel) once, on one of the threads. What it runs on `parallel` is shared by all
// of them.
void run_as_team(const Parallel *threads, void (*work)(void *state, const Parallel *), void *state);

#endif
