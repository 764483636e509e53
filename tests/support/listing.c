/* Lists a tree: one line for each name below the directory argv[1], which becomes the root, with everything that
 * an image can say about it. Static and without libraries, so that the same program runs on the host and in a
 * guest. Columns are separated by tabs, bytes other than printable ASCII are written as %XX:
 *
 *   path mode uid gid size links device:inode seconds.nanoseconds rdev target attributes contents
 *
 * contents is a hash of a file in 64 bits, FNV-1a over words: it is to show mistakes, not attacks, and to be quick in
 * a guest that is emulated. A directory on another file system than its root is listed and not entered. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static dev_t root_device;

static void fail(const char *what, const char *path)
{
    fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void print_bytes(const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = bytes[i];
        if (byte > ' ' && byte < 127 && byte != '%' && byte != '=' && byte != ',')
            putchar_unlocked(byte);
        else
            printf("%%%02X", byte);
    }
}

static void print_attributes(const char *path)
{
    static char names[1 << 16], value[1 << 16];
    ssize_t length = llistxattr(path, names, sizeof names);
    if (length < 0 && errno != ENOTSUP)
        fail("llistxattr", path);
    /* File systems list them in any order. */
    const char *sorted[256];
    size_t count = 0;
    for (char *name = names; name < names + length && count < 256; name += strlen(name) + 1) {
        size_t at = count++;
        for (; at > 0 && strcmp(sorted[at - 1], name) > 0; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = name;
    }
    for (size_t i = 0; i < count; i++) {
        ssize_t size = lgetxattr(path, sorted[i], value, sizeof value);
        if (size < 0)
            fail("lgetxattr", path);
        print_bytes(sorted[i], strlen(sorted[i]));
        putchar('=');
        print_bytes(value, size);
        putchar(',');
    }
}

static void print_contents(const char *path)
{
    static uint64_t buffer[1 << 15];
    uint64_t hash = 0xcbf29ce484222325;
    int file = open(path, O_RDONLY | O_NOFOLLOW);
    if (file < 0)
        fail("open", path);
    ssize_t count;
    while ((count = read(file, buffer, sizeof buffer)) > 0) {
        /* Zeros up to a word. A read of a file is short only at its end. */
        memset((char *)buffer + count, 0, -count & 7);
        for (ssize_t i = 0; i < (count + 7) / 8; i++)
            hash = (hash ^ buffer[i]) * 0x100000001b3;
    }
    if (count < 0)
        fail("read", path);
    close(file);
    printf("%016llx", (unsigned long long)hash);
}

static void list(char *path, size_t length);

static void list_directory(char *path, size_t length)
{
    DIR *directory = opendir(path);
    if (!directory)
        fail("opendir", path);
    struct dirent *entry;
    while ((errno = 0, entry = readdir(directory))) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        size_t size = strlen(name);
        path[length] = '/';
        memcpy(path + length + 1, name, size + 1);
        list(path, length + 1 + size);
        path[length] = 0;
    }
    if (errno)
        fail("readdir", path);
    closedir(directory);
}

static void list(char *path, size_t length)
{
    struct stat about;
    if (lstat(path, &about))
        fail("lstat", path);
    print_bytes(path, length);
    printf("\t%o\t%u\t%u\t%lld\t%lu\t%lx:%lx\t%lld.%09ld\t%u:%u\t", about.st_mode, about.st_uid, about.st_gid,
           (long long)about.st_size, (unsigned long)about.st_nlink, (unsigned long)about.st_dev,
           (unsigned long)about.st_ino, (long long)about.st_mtim.tv_sec, about.st_mtim.tv_nsec,
           major(about.st_rdev), minor(about.st_rdev));
    if (S_ISLNK(about.st_mode)) {
        static char target[4096];
        ssize_t size = readlink(path, target, sizeof target);
        if (size < 0)
            fail("readlink", path);
        print_bytes(target, size);
    }
    putchar('\t');
    print_attributes(path);
    putchar('\t');
    if (S_ISREG(about.st_mode) && about.st_size > 0)
        print_contents(path);
    putchar('\n');
    if (S_ISDIR(about.st_mode) && about.st_dev == root_device)
        list_directory(path, length);
}

int main(int count, char **arguments)
{
    static char path[1 << 14] = ".";
    struct stat root;
    if (count != 2 || chroot(arguments[1]) || chdir("/") || stat(".", &root))
        fail("chroot", count == 2 ? arguments[1] : "");
    root_device = root.st_dev;
    list(path, 1);
    if (fflush(stdout))
        fail("write", "standard output");
    return 0;
}
