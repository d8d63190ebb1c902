/* Shifts the clock, and the times of files, of a process by the seconds in the file CLOCK_SHIFT names: LD_PRELOAD. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
  static volatile long *shared = 0;
  if (!shared) {
    int file = open(getenv("CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
    shared = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    close(file);
  }
  return *shared;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
  return failed;
}

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *found) {
  int failed = syscall(SYS_statx, folder, path, flags, mask, found);
  if (!failed) found->stx_mtime.tv_sec += shift();
  return failed;
}
