// Load on the file system of a directory, measured where it is made: mount_load DIRECTORY FILES BYTES [ONLY...]
//
// Each line told is a name, how often it was done, seconds, context switches and interrupts: of each of `loads`, or of those
// of ONLY. There are FILES small files and one of BYTES, of which an eighth is read and written at random. Caches are
// dropped where the guest allows it, so that what is read is not its own memory.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LARGE = 1 << 20, PAGE = 4096, BRANCHES = 20 };

static char piece[LARGE];
static const char *directory;
static long files, bytes;

static void check(long result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s: %s\n", directory, what, strerror(errno));
        exit(1);
    }
}

static const char *path(const char *name, long number)
{
    static char text[4096];
    snprintf(text, sizeof text, "%s/%s%ld", directory, name, number);
    return text;
}

static void drop_caches(void)
{
    int control = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    sync();
    if (control >= 0) {
        if (write(control, "3", 1) < 0)
            errno = 0;
        close(control);
    }
}

static int large(int flags)
{
    int file = open(path("large", 0), flags | O_CLOEXEC, 0644);
    check(file, "open");
    return file;
}

static void write_all(void)
{
    int file = large(O_WRONLY | O_CREAT | O_TRUNC);
    for (long at = 0; at < bytes; at += LARGE)
        check(write(file, piece, LARGE), "write");
    check(fsync(file), "fsync");
    close(file);
}

static void read_all(void)
{
    int file = large(O_RDONLY);
    for (long at = 0; at < bytes; at += LARGE)
        check(read(file, piece, LARGE), "read");
    close(file);
}

// The same places for everybody: a generator of Lehmer's, not the C library's.
static off_t somewhere(void)
{
    static unsigned long long state = 1;
    state = state * 48271 % 2147483647;
    return (off_t)(state % (unsigned long long)(bytes / PAGE)) * PAGE;
}

static void write_pages(void)
{
    int file = large(O_WRONLY);
    for (long at = 0; at < bytes / 8; at += PAGE)
        check(pwrite(file, piece, PAGE, somewhere()), "write");
    check(fsync(file), "fsync");
    close(file);
}

static void read_pages(void)
{
    int file = large(O_RDONLY);
    for (long at = 0; at < bytes / 8; at += PAGE)
        check(pread(file, piece, PAGE, somewhere()), "read");
    close(file);
}

static void create(void)
{
    for (long number = 0; number < files; number++) {
        int file = open(path("small", number), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        check(file, "create");
        close(file);
    }
}

static void stat_each(void)
{
    struct stat seen;
    for (long number = 0; number < files; number++)
        check(stat(path("small", number), &seen), "stat");
}

// As `ls -l` does.
static void list(void)
{
    struct dirent *entry;
    struct stat seen;
    DIR *listed = opendir(directory);
    check(listed ? 0 : -1, "opendir");
    while ((entry = readdir(listed)))
        check(fstatat(dirfd(listed), entry->d_name, &seen, AT_SYMLINK_NOFOLLOW), "stat");
    closedir(listed);
}

static void fill(void)
{
    for (long number = 0; number < files; number++) {
        int file = open(path("small", number), O_WRONLY | O_CLOEXEC);
        check(file, "open");
        check(write(file, piece, 1000), "write");
        close(file);
    }
}

static void read_each(void)
{
    for (long number = 0; number < files; number++) {
        int file = open(path("small", number), O_RDONLY | O_CLOEXEC);
        check(file, "open");
        check(read(file, piece, PAGE), "read");
        close(file);
    }
}

static void unlink_each(void)
{
    for (long number = 0; number < files; number++)
        check(unlink(path("small", number)), "unlink");
}

// What an archive is unpacked to: directories with files of a few kilobytes, with a mode and a time each.
static void unpack(void)
{
    for (long branch = 0; branch < BRANCHES; branch++) {
        check(mkdir(path("tree", branch), 0755), "mkdir");
        for (long number = 0; number < files / BRANCHES; number++) {
            char name[64];
            struct timespec times[2] = {{.tv_sec = 1000000}, {.tv_sec = 1000000}};
            snprintf(name, sizeof name, "tree%ld/file", branch);
            int file = open(path(name, number), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            check(file, "create");
            check(write(file, piece, 3000), "write");
            check(futimens(file, times), "times");
            check(fchmod(file, 0644), "mode");
            close(file);
        }
    }
}

static long counted(const char *name)
{
    char line[1 << 12];
    long count = 0;
    FILE *seen = fopen("/proc/stat", "r");
    while (seen && fgets(line, sizeof line, seen))
        if (!strncmp(line, name, strlen(name)))
            count = atol(line + strlen(name));
    if (seen)
        fclose(seen);
    return count;
}

static int gone(const char *name, const struct stat *seen, int kind, struct FTW *at)
{
    (void)seen, (void)kind, (void)at;
    check(remove(name), "remove");
    return 0;
}

static void remove_tree(void)
{
    for (long branch = 0; branch < BRANCHES; branch++)
        check(nftw(path("tree", branch), gone, 16, FTW_DEPTH | FTW_PHYS), "walk");
}

static const struct {
    const char *name;
    void (*act)(void);
    int cold; // caches are dropped before
    int size; // of one access to the large file; 0: it is of the small ones
} loads[] = {
    {"write 1M", write_all, 0, LARGE},      {"read 1M", read_all, 1, LARGE},
    {"random write 4k", write_pages, 0, 8 * PAGE}, {"random read 4k", read_pages, 1, 8 * PAGE},
    {"create", create, 0, 0},               {"stat", stat_each, 1, 0},
    {"ls -l", list, 1, 0},                  {"open and write", fill, 0, 0},
    {"open and read", read_each, 1, 0},     {"unlink", unlink_each, 0, 0},
    {"tar x", unpack, 0, 0},                {"rm -r", remove_tree, 1, 0},
};

static int wanted(const char *name, char **only)
{
    if (!*only)
        return 1;
    while (*only && strcmp(*only, name))
        only++;
    return *only != NULL;
}

int main(int count, char **given)
{
    if (count < 4) {
        fprintf(stderr, "mount_load DIRECTORY FILES BYTES [ONLY...]\n");
        return 2;
    }
    directory = given[1];
    files = atol(given[2]);
    bytes = atol(given[3]);
    memset(piece, 7, sizeof piece);
    for (size_t number = 0; number < sizeof loads / sizeof *loads; number++) {
        struct timespec begun, ended;
        if (!wanted(loads[number].name, given + 4))
            continue;
        if (loads[number].cold)
            drop_caches();
        long switches = counted("ctxt "), interrupts = counted("intr ");
        clock_gettime(CLOCK_MONOTONIC, &begun);
        loads[number].act();
        clock_gettime(CLOCK_MONOTONIC, &ended);
        double seconds = (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9;
        printf("%s,%ld,%.6f,%ld,%ld\n", loads[number].name, loads[number].size ? bytes / loads[number].size : files, seconds,
               counted("ctxt ") - switches, counted("intr ") - interrupts);
        fflush(stdout);
    }
    unlink(path("large", 0));
    return 0;
}
