/*
 * A hostile process in a container: as long as it lives it tries to reach every process of the container's pid
 * namespace that it did not start itself, by all that the kernel's ptrace access check guards (ptrace(2), proc(5)).
 *
 *   prowl LOOT ROLE...
 *
 * Every role is a process of its own. "same" stays who it is, a number becomes that uid, a number with "+" becomes that
 * uid and keeps its capabilities. What was reached is appended to LOOT, one line each; LOOT.seen holds the number of
 * looks at foreign processes, so that a test can tell "refused" from "never looked".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "become.h"

static int loot;
static unsigned long *seen;
static int at_start[4096], n_at_start;
static struct stat own_root;

static void found(const char *role, int pid, const char *what, struct stat *info)
{
	char line[200];
	int n = snprintf(line, sizeof line, "%s %s pid %d %lu:%lu\n", role, what, pid,
			 info ? (unsigned long)info->st_dev : 0, info ? (unsigned long)info->st_ino : 0);
	if (write(loot, line, n) != n)
		_exit(3);
}

static int is_own(int pid)
{
	if (getsid(pid) == getsid(0))
		return 1;
	for (int i = 0; i < n_at_start; i++)
		if (at_start[i] == pid)
			return 1;
	return 0;
}

static void look(const char *role, int pid)
{
	static const char *const files[] = {"environ", "mem", "maps", "auxv", "stack"};
	static const char *const places[] = {"root", "cwd", "exe"};
	char path[64], byte[64];
	struct stat info;
	int fd;

	snprintf(path, sizeof path, "/proc/%d", pid);
	if (is_own(pid) || access(path, F_OK) < 0)
		return;
	__atomic_add_fetch(seen, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, places[i]);
		fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			continue;
		/* A process of "cntr exec" stands in our own root: that is no loot. */
		if (!fstat(fd, &info) && (info.st_dev != own_root.st_dev || info.st_ino != own_root.st_ino))
			found(role, pid, places[i], &info);
		close(fd);
	}
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (i == 1 || read(fd, byte, sizeof byte) > 0)
			found(role, pid, files[i], NULL);
		close(fd);
	}
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *dir = opendir(path);
	for (struct dirent *entry; dir && (entry = readdir(dir));) {
		/* The numbers themselves are no secret to the same uid; what is behind them is. */
		if (entry->d_name[0] != '.' && readlinkat(dirfd(dir), entry->d_name, byte, sizeof byte) > 0)
			found(role, pid, "fd", NULL);
	}
	if (dir)
		closedir(dir);
	snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
	if (readlink(path, byte, sizeof byte) > 0)
		found(role, pid, "ns", NULL);
	/* The same check as for ptrace(PTRACE_ATTACH), which would keep the session from ending. */
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (pidfd >= 0) {
		fd = syscall(SYS_pidfd_getfd, pidfd, 0, 0);
		if (fd >= 0) {
			found(role, pid, "getfd", NULL);
			close(fd);
		}
		close(pidfd);
	}
}

static int newest(void)
{
	char text[128], *last;
	int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC), n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	last = strrchr(text, ' ');
	return last ? atoi(last) : 0;
}

static void prowl(const char *role)
{
	become(role);
	if (nice(5) == -1) /* let the sessions come and go on a machine of few cores: the more of them, the more chances */
		_exit(4);
	for (unsigned round = 0;; round++) {
		int last = newest();
		for (int pid = last + 3; pid > last - 12 && pid > 1; pid--)
			look(role, pid);
		if (round % 64)
			continue;
		DIR *dir = opendir("/proc");
		for (struct dirent *entry; dir && (entry = readdir(dir));)
			if (atoi(entry->d_name) > 1)
				look(role, atoi(entry->d_name));
		if (dir)
			closedir(dir);
	}
}

int main(int argc, char **argv)
{
	char path[4096], text[32];
	DIR *dir = opendir("/proc");

	if (argc < 3 || !dir || stat("/", &own_root))
		return 2;
	setsid(); /* whoever started us may have a session that this pid namespace does not see, and so may a cntr session */
	for (struct dirent *entry; (entry = readdir(dir)) && n_at_start < 4096;)
		if (atoi(entry->d_name) > 0)
			at_start[n_at_start++] = atoi(entry->d_name);
	closedir(dir);
	loot = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0666);
	snprintf(path, sizeof path, "%s.seen", argv[1]);
	int count = open(path, O_WRONLY | O_CREAT, 0666);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (loot < 0 || count < 0 || seen == MAP_FAILED)
		return 2;
	for (int i = 2; i < argc; i++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0);
			prowl(argv[i]);
		}
	for (;;) {
		int n = snprintf(text, sizeof text, "%lu\n", *seen);
		if (pwrite(count, text, n, 0) != n)
			return 3;
		usleep(20000);
	}
}
