// What checks of files are made of: one that does not hold says where, and ends its process.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *about;

static void failed(int line, const char *what)
{
    printf("%s: line %d: %s (%s)\n", about, line, what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static long worked(int line, const char *what, long result)
{
    if (result == -1)
        failed(line, what);
    return result;
}

static void refused(int line, const char *what, long result, const int *numbers)
{
    if (result == -1)
        for (; *numbers; numbers++)
            if (errno == *numbers)
                return;
    // What is left of earlier calls says nothing of one that succeeded.
    if (result != -1)
        errno = 0;
    failed(line, what);
}

#define holds(what) ((what) ? (void)0 : failed(__LINE__, #what))
#define works(call) worked(__LINE__, #call, (call))
#define fails(call, ...) refused(__LINE__, #call, (call), (const int[]){__VA_ARGS__, 0})

static struct stat of(const char *name)
{
    struct stat seen;
    if (lstat(name, &seen) == -1)
        failed(0, name);
    return seen;
}

static long bits(const char *name) { return of(name).st_mode & 07777; }

static long long nanoseconds(struct timespec time) { return time.tv_sec * 1000000000LL + time.tv_nsec; }

static void make(const char *name, const char *text, mode_t mode)
{
    int file = open(name, O_CREAT | O_EXCL | O_WRONLY, mode);
    if (file == -1 || write(file, text, strlen(text)) != (ssize_t)strlen(text) || close(file) == -1)
        failed(0, name);
}

static int reads(const char *name, const char *text)
{
    char seen[4096] = "";
    int file = open(name, O_RDONLY);
    ssize_t length = file == -1 ? -1 : read(file, seen, sizeof seen);
    close(file);
    return length == (ssize_t)strlen(text) && !memcmp(seen, text, (size_t)length);
}

static int entries(const char *name)
{
    int count = 0;
    DIR *listed = opendir(name);
    while (listed && readdir(listed))
        count++;
    if (listed)
        closedir(listed);
    return count - 2;
}

static void as(uid_t user)
{
    // Back to root first: nobody else may become another.
    if (seteuid(0) || setgroups(0, NULL) || setegid(user) || seteuid(user))
        failed(0, "seteuid");
}
