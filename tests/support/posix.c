// What POSIX says of files, each as one check, in a directory of its own: posix DIRECTORY OWNERSHIP CACHE
//
// From the sections of System Interfaces in IEEE Std 1003.1-2017 that the checks are named after, and open(2), rename(2) and
// xattr(7) of Linux. OWNERSHIP and CACHE are the share's (docs/mounts.md): what they do not promise is not asked for. Run as
// root: what others may is asked by changing the user. A line is printed for each check that does not hold.

#include "posix.h"

enum { MANY = 200, OTHER = 4321 };

static int virtual_owners, uncached;
static char longest[257];

static void open_creates_excludes_and_truncates(void)
{
    make("a", "text", 0644);
    fails(open("a", O_CREAT | O_EXCL, 0600), EEXIST);
    works(symlink("nowhere", "dangling"));
    fails(open("dangling", O_CREAT | O_EXCL, 0600), EEXIST);
    fails(open("none", O_RDONLY), ENOENT);
    fails(open("a/b", O_RDONLY), ENOTDIR);
    fails(open("a", O_DIRECTORY), ENOTDIR);
    works(mkdir("d", 0755));
    fails(open("d", O_WRONLY), EISDIR);
    works(open("a", O_WRONLY | O_TRUNC));
    holds(of("a").st_size == 0);
    works(symlink("a", "link"));
    fails(open("link", O_NOFOLLOW), ELOOP);
    works(open("dangling", O_CREAT | O_WRONLY, 0600));
    works(access("nowhere", F_OK));
    fails(open("new/", O_CREAT | O_WRONLY, 0600), EISDIR, ENOENT);
    umask(027);
    works(open("masked", O_CREAT | O_WRONLY, 0666));
    holds(bits("masked") == 0640);
    // Write is for those who could not open what they made, too.
    int file = (int)works(open("sealed", O_CREAT | O_WRONLY, 0));
    holds(works(write(file, "x", 1)) == 1);
}

static void writes_append_and_leave_holes(void)
{
    char text[3];
    int both[2];
    for (int at = 0; at < 2; at++)
        both[at] = (int)works(open("a", O_CREAT | O_WRONLY | O_APPEND, 0644));
    for (int number = 0; number < 50; number++) {
        snprintf(text, sizeof text, "%02d", number);
        works(write(both[number % 2], text, 2));
    }
    works(lseek(both[0], 0, SEEK_SET));
    works(write(both[0], "end", 3));
    holds(of("a").st_size == 103);
    int file = (int)works(open("a", O_RDWR));
    holds(pread(file, text, 3, 100) == 3 && !memcmp(text, "end", 3));
    holds(pread(file, text, 2, 98) == 2 && !memcmp(text, "49", 2));
    works(pwrite(file, "x", 1, 100000));
    holds(pread(file, text, 1, 50000) == 1 && text[0] == 0);
    holds(read(file, text, 0) == 0);
    struct iovec parts[2] = {{"ab", 2}, {"c", 1}};
    works(lseek(file, 0, SEEK_SET));
    holds(writev(file, parts, 2) == 3);
    holds(lseek(file, 0, SEEK_CUR) == 3);
}

static void descriptors_are_for_what_they_were_opened(void)
{
    char byte;
    make("a", "text", 0644);
    int reader = (int)works(open("a", O_RDONLY)), writer = (int)works(open("a", O_WRONLY));
    fails(write(reader, "x", 1), EBADF);
    fails(read(writer, &byte, 1), EBADF);
    fails(lseek(reader, -1, SEEK_SET), EINVAL);
    holds(lseek(reader, 10, SEEK_END) == 14);
    holds(read(reader, &byte, 1) == 0);
    fails(ftruncate(reader, 0), EINVAL, EBADF);
    fails(read((int)works(open(".", O_RDONLY)), &byte, 1), EISDIR);
}

static void names_have_255_bytes_and_paths_end(void)
{
    static char path[5000];
    make(longest + 1, "", 0644);
    holds(entries(".") == 1);
    fails(access(longest, F_OK), ENAMETOOLONG);
    fails(mkdir(longest, 0755), ENAMETOOLONG);
    fails(unlink(longest), ENAMETOOLONG);
    fails(rmdir(longest), ENAMETOOLONG);
    fails(symlink("a", longest), ENAMETOOLONG);
    fails(link(longest + 1, longest), ENAMETOOLONG);
    fails(rename(longest + 1, longest), ENAMETOOLONG);
    for (size_t at = 0; at < 4200; at += 2)
        memcpy(path + at, "d/", 2);
    fails(access(path, F_OK), ENAMETOOLONG);
    fails(access("", F_OK), ENOENT);
    make("name with\nother \xff bytes", "", 0644);
    holds(entries(".") == 2);
}

static void symlinks_hold_a_text_and_do_not_go_round(void)
{
    static char text[PATH_MAX + 1];
    works(symlink("one", "two"));
    works(symlink("two", "one"));
    fails(open("one", O_RDONLY), ELOOP);
    fails(open("one/x", O_RDONLY), ELOOP);
    holds(readlink("one", text, sizeof text) == 3 && !memcmp(text, "two", 3));
    holds(readlink("one", text, 1) == 1);
    make("file", "", 0644);
    fails(readlink("file", text, sizeof text), EINVAL);
    fails(symlink("x", "file"), EEXIST);
    memset(text, 't', 4095);
    text[4095] = 0;
    works(symlink(text, "long"));
    holds(of("long").st_size == 4095);
    works(mkdir("d", 0755));
    works(symlink("d", "to"));
    make("to/in", "", 0644);
    works(access("d/in", F_OK));
    fails(rmdir("to"), ENOTDIR);
    works(unlink("to"));
    works(access("d/in", F_OK));
}

static void links_are_names_of_one_file(void)
{
    make("a", "text", 0644);
    works(link("a", "b"));
    holds(of("a").st_ino == of("b").st_ino);
    holds(of("b").st_nlink == 2);
    long long before = nanoseconds(of("b").st_ctim);
    works(unlink("a"));
    holds(of("b").st_nlink == 1);
    holds(nanoseconds(of("b").st_ctim) >= before);
    holds(reads("b", "text"));
    works(mkdir("d", 0755));
    fails(link("d", "e"), EPERM);
    fails(link("b", "d"), EEXIST);
    fails(link("none", "c"), ENOENT);
    works(symlink("b", "s"));
    works(link("s", "t"));
    holds(S_ISLNK(of("t").st_mode));
    works(linkat(AT_FDCWD, "s", AT_FDCWD, "followed", AT_SYMLINK_FOLLOW));
    holds(of("followed").st_ino == of("b").st_ino);
}

static void unlinked_files_go_on_while_they_are_open(void)
{
    struct stat seen;
    char text[9];
    make("a", "text", 0644);
    int file = (int)works(open("a", O_RDWR));
    works(unlink("a"));
    works(fstat(file, &seen));
    holds(seen.st_nlink == 0);
    works(write(file, "more", 4));
    works(ftruncate(file, 6));
    works(fchmod(file, 0600));
    holds(pread(file, text, 9, 0) == 6 && !memcmp(text, "more\0\0", 6));
    fails(access("a", F_OK), ENOENT);
    make("a", "another", 0644);
    holds(pread(file, text, 9, 0) == 6);
    works(mkdir("d", 0755));
    fails(unlink("d"), EISDIR, EPERM);
    fails(unlink("a/b"), ENOTDIR);
    fails(unlink("a/"), ENOTDIR);
}

static void renames_replace_and_refuse(void)
{
    char byte;
    make("a", "a", 0644);
    make("b", "b", 0644);
    int replaced = (int)works(open("b", O_RDONLY));
    ino_t inode = of("a").st_ino;
    works(rename("a", "b"));
    holds(reads("b", "a") && of("b").st_ino == inode);
    holds(read(replaced, &byte, 1) == 1 && byte == 'b');
    works(link("b", "c"));
    works(rename("b", "c"));
    holds(entries(".") == 2);
    works(mkdir("d", 0755));
    works(mkdir("d/e", 0755));
    works(mkdir("d/e/f", 0755));
    works(mkdir("empty", 0755));
    fails(rename("d", "d/e/g"), EINVAL);
    fails(rename("empty", "d"), ENOTEMPTY, EEXIST);
    fails(rename("b", "d"), EISDIR);
    fails(rename("d", "b"), ENOTDIR);
    fails(rename("none", "x"), ENOENT);
    fails(rename("d/.", "x"), EBUSY, EINVAL);
    int inside = (int)works(open("d/e", O_RDONLY | O_DIRECTORY));
    works(rename("d", "empty"));
    works(access("empty/e/f", F_OK));
    works(faccessat(inside, "f", F_OK, 0));
    works(rename("empty/e", "e"));
    holds(of("e/..").st_ino == of(".").st_ino);
    works(rename("b", "e/b"));
    holds(reads("e/b", "a"));
    fails(renameat2(AT_FDCWD, "e", AT_FDCWD, "c", RENAME_NOREPLACE), EEXIST);
    works(renameat2(AT_FDCWD, "e", AT_FDCWD, "c", RENAME_EXCHANGE));
    holds(S_ISDIR(of("c").st_mode) && S_ISREG(of("e").st_mode));
}

static void directories_are_made_and_taken_when_empty(void)
{
    works(mkdir("d", 0750));
    holds(bits("d") == 0750);
    fails(mkdir("d", 0755), EEXIST);
    fails(mkdir("x/y", 0755), ENOENT);
    works(mkdir("slash/", 0755));
    make("d/a", "", 0644);
    fails(rmdir("d"), ENOTEMPTY, EEXIST);
    fails(rmdir("d/."), EINVAL);
    fails(rmdir("d/.."), ENOTEMPTY, EEXIST);
    fails(rmdir("d/a"), ENOTDIR);
    works(unlink("d/a"));
    int held = (int)works(open("d", O_RDONLY));
    works(rmdir("d"));
    DIR *listed = fdopendir(held);
    holds(listed && !readdir(listed));
    fails(openat(held, "x", O_CREAT | O_WRONLY, 0600), ENOENT);
}

static void listings_have_every_name_once(void)
{
    static unsigned char seen[MANY];
    char name[8];
    struct dirent *entry;
    for (int number = 0; number < MANY; number++) {
        snprintf(name, sizeof name, "%04d", number);
        make(name, "", 0644);
    }
    DIR *listed = opendir(".");
    // Some of them, back, and all of them, each taken as soon as it is told.
    for (int number = 0; number < 20; number++)
        holds(readdir(listed) != NULL);
    rewinddir(listed);
    while ((entry = readdir(listed))) {
        if (entry->d_name[0] == '.')
            continue;
        holds(entry->d_type == DT_REG && entry->d_ino == of(entry->d_name).st_ino);
        holds(!seen[atoi(entry->d_name)]++);
        works(unlink(entry->d_name));
    }
    for (int number = 0; number < MANY; number++)
        holds(seen[number]);
    holds(entries(".") == 0);
}

static void modes_and_owners_are_kept(void)
{
    static const mode_t modes[] = {0, 0400, 0777, 04755, 02755, 01777};
    make("a", "", 0644);
    for (size_t at = 0; at < sizeof modes / sizeof *modes; at++) {
        works(chmod("a", modes[at]));
        holds(bits("a") == (modes[at] & (virtual_owners ? 07777 : 0777)));
    }
    works(chmod("a", 0640));
    as(OTHER);
    fails(chmod("a", 0777), EPERM);
    fails(chown("a", OTHER, OTHER), EPERM);
    fails(open("a", O_RDONLY), EACCES);
    as(0);
    if (!virtual_owners)
        return;
    works(chown("a", 1234, 5678));
    holds(of("a").st_uid == 1234 && of("a").st_gid == 5678);
    works(chown("a", (uid_t)-1, 99));
    holds(of("a").st_uid == 1234 && of("a").st_gid == 99);
    works(symlink("a", "s"));
    works(lchown("s", 7, 8));
    holds(of("s").st_uid == 7 && of("a").st_uid == 1234);
    as(1234);
    works(open("a", O_RDWR));
    works(chmod("a", 0600));
    fails(chown("a", 0, (gid_t)-1), EPERM);
}

static void set_id_bits_go_when_somebody_writes(void)
{
    if (!virtual_owners)
        return;
    make("a", "", 0644);
    works(chown("a", 1000, 1000));
    works(chmod("a", 06777));
    as(1001);
    works(write((int)works(open("a", O_WRONLY)), "x", 1));
    as(0);
    holds(bits("a") == 0777);
    works(chmod("a", 06777));
    works(chown("a", 1001, 1001));
    holds(bits("a") == 0777);
    works(chmod("a", 06777));
    as(1002);
    works(truncate("a", 0));
    as(0);
    holds(bits("a") == 0777);
}

static void what_is_made_belongs_to_who_made_it(void)
{
    if (!virtual_owners)
        return;
    works(chmod(".", 0777));
    as(OTHER);
    make("a", "", 0644);
    works(mkdir("d", 0755));
    works(symlink("a", "s"));
    as(0);
    holds(of("a").st_uid == OTHER && of("d").st_uid == OTHER && of("s").st_uid == OTHER);
    works(mkdir("g", 0755));
    works(chown("g", 0, 77));
    works(chmod("g", 02777));
    as(OTHER);
    make("g/a", "", 0644);
    works(mkdir("g/d", 0755));
    as(0);
    holds(of("g/a").st_gid == 77 && of("g/d").st_gid == 77);
    holds(of("g/d").st_mode & S_ISGID);
    works(mkdir("t", 0755));
    works(chmod("t", 01777));
    make("t/roots", "", 0644);
    as(OTHER);
    fails(unlink("t/roots"), EPERM, EACCES);
    fails(rename("t/roots", "t/x"), EPERM, EACCES);
}

static void searching_wants_the_right_to(void)
{
    works(mkdir("d", 0700));
    make("d/a", "", 0666);
    as(OTHER);
    fails(truncate("d/a", 0), EACCES);
    fails(open("d", O_RDONLY), EACCES);
    fails(unlink("d/a"), EACCES);
    fails(faccessat(AT_FDCWD, "d", R_OK, AT_EACCESS), EACCES);
    as(0);
    works(chmod("d", 0711));
    as(OTHER);
    holds(of("d/a").st_size == 0);
    fails(open("d/b", O_CREAT | O_WRONLY, 0600), EACCES);
}

static void sizes_are_set_up_and_down(void)
{
    char text[4];
    make("a", "text", 0644);
    int file = (int)works(open("a", O_RDWR));
    works(truncate("a", 10000));
    holds(of("a").st_size == 10000 && pread(file, text, 4, 9996) == 4 && !memcmp(text, "\0\0\0\0", 4));
    works(truncate("a", 2));
    holds(reads("a", "te") && pread(file, text, 4, 0) == 2);
    works(truncate("a", 4));
    holds(pread(file, text, 4, 0) == 4 && !memcmp(text, "te\0\0", 4));
    fails(truncate("a", -1), EINVAL);
    works(mkdir("d", 0755));
    fails(truncate("d", 0), EISDIR);
    holds(posix_fallocate(file, 0, 8192) == 0);
    holds(of("a").st_size == 8192);
    works(pwrite(file, "far", 3, 1LL << 32));
    holds(of("a").st_size == (1LL << 32) + 3);
    holds(works(lseek(file, 1 << 20, SEEK_DATA)) <= 1LL << 32);
}

static void times_are_set_and_go_on(void)
{
    struct timespec fixed[2] = {{1, 1}, {-1, 0}}, modified[2] = {{0, UTIME_OMIT}, {5, 0}}, zero[2] = {{0, 0}, {0, 0}};
    make("a", "", 0644);
    works(utimensat(AT_FDCWD, "a", fixed, 0));
    holds(nanoseconds(of("a").st_atim) == 1000000001 && nanoseconds(of("a").st_mtim) == -1000000000);
    works(utimensat(AT_FDCWD, "a", modified, 0));
    holds(nanoseconds(of("a").st_atim) == 1000000001 && of("a").st_mtim.tv_sec == 5);
    long long before = (time(NULL) - 1) * 1000000000LL;
    works(utimensat(AT_FDCWD, "a", NULL, 0));
    holds(nanoseconds(of("a").st_mtim) > before);
    works(utimensat(AT_FDCWD, "a", zero, 0));
    works(write((int)works(open("a", O_WRONLY | O_APPEND)), "x", 1));
    holds(nanoseconds(of("a").st_mtim) > before);
    works(utimensat(AT_FDCWD, ".", zero, 0));
    make("b", "", 0644);
    holds(nanoseconds(of(".").st_mtim) > before);
    works(utimensat(AT_FDCWD, ".", zero, 0));
    works(rename("b", "c"));
    holds(nanoseconds(of(".").st_mtim) > before);
    works(symlink("a", "s"));
    works(utimensat(AT_FDCWD, "s", modified, AT_SYMLINK_NOFOLLOW));
    holds(of("s").st_mtim.tv_sec == 5);
    works(chmod("a", 0666));
    as(OTHER);
    works(utimensat(AT_FDCWD, "a", NULL, 0));
    fails(utimensat(AT_FDCWD, "a", fixed, 0), EPERM);
}

static void special_files_are_what_they_were_made(void)
{
    char text[8];
    if (!virtual_owners) {
        fails(mkfifo("fifo", 0600), EPERM);
        return;
    }
    works(mkfifo("fifo", 0640));
    works(mknod("socket", S_IFSOCK | 0600, 0));
    works(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
    holds(S_ISFIFO(of("fifo").st_mode) && S_ISSOCK(of("socket").st_mode));
    holds(of("null").st_rdev == makedev(1, 3));
    int reader = (int)works(open("fifo", O_RDONLY | O_NONBLOCK)), writer = (int)works(open("fifo", O_WRONLY));
    works(write(writer, "through", 7));
    holds(read(reader, text, 8) == 7);
    fails(mkfifo("fifo", 0600), EEXIST);
}

static void locks_keep_others_out(void)
{
    int status;
    struct flock whole = {.l_type = F_WRLCK};
    make("a", "", 0644);
    int one = (int)works(open("a", O_RDWR)), two = (int)works(open("a", O_RDWR));
    works(flock(one, LOCK_EX));
    fails(flock(two, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    works(flock(one, LOCK_UN));
    works(flock(two, LOCK_EX | LOCK_NB));
    works(fcntl(one, F_SETLK, &whole));
    pid_t other = fork();
    if (other == 0) {
        fails(fcntl(two, F_SETLK, &whole), EACCES, EAGAIN);
        _exit(0);
    }
    holds(waitpid(other, &status, 0) == other && status == 0);
}

static void attributes_are_made_replaced_and_taken(void)
{
    static const char *const others[] = {"user.microsandbox.owner", "trusted.x", "security.x"};
    char text[100];
    make("a", "", 0644);
    works(setxattr("a", "user.x", "1", 1, XATTR_CREATE));
    fails(setxattr("a", "user.x", "2", 1, XATTR_CREATE), EEXIST);
    fails(setxattr("a", "user.y", "2", 1, XATTR_REPLACE), ENODATA);
    holds(listxattr("a", text, sizeof text) == 7 && !strcmp(text, "user.x"));
    holds(getxattr("a", "user.x", text, sizeof text) == 1 && text[0] == '1');
    works(removexattr("a", "user.x"));
    fails(getxattr("a", "user.x", text, sizeof text), ENODATA);
    for (int at = 0; at < 3; at++)
        fails(setxattr("a", others[at], "1", 1, 0), EPERM, EOPNOTSUPP, EINVAL);
}

static void what_is_mapped_is_the_file(void)
{
    char text[4];
    make("a", "text", 0644);
    int file = (int)works(open("a", O_RDWR));
    works(ftruncate(file, 8192));
    char *own = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    holds(own != MAP_FAILED && !memcmp(own, "text", 4));
    own[0] = 'x';
    holds(pread(file, text, 4, 0) == 4 && text[0] == 't');
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (uncached) {
        holds(shared == MAP_FAILED && errno == ENODEV);
        return;
    }
    holds(shared != MAP_FAILED);
    memcpy(shared + 4096, "page", 4);
    works(msync(shared, 8192, MS_SYNC));
    holds(pread(file, text, 4, 4096) == 4 && !memcmp(text, "page", 4));
    works(pwrite(file, "seen", 4, 0));
    holds(!memcmp(shared, "seen", 4));
}

static void what_is_synced_is_copied(void)
{
    static char text[20000], copy[20000];
    struct statvfs seen;
    make("a", "", 0644);
    make("b", "", 0644);
    memset(text, 't', sizeof text);
    int source = (int)works(open("a", O_RDWR)), target = (int)works(open("b", O_RDWR));
    holds(pwrite(source, text, sizeof text, 0) == sizeof text);
    works(fsync(source));
    works(fdatasync(source));
    works(fsync((int)works(open(".", O_RDONLY))));
    holds(copy_file_range(source, NULL, target, NULL, sizeof text, 0) == sizeof text);
    holds(pread(target, copy, sizeof copy, 0) == sizeof copy && !memcmp(text, copy, sizeof copy));
    works(statvfs(".", &seen));
    holds(seen.f_namemax == 255 && seen.f_blocks >= seen.f_bfree);
}

#define CHECK(name) {#name, name}
static const struct {
    const char *name;
    void (*act)(void);
} checks[] = {
    CHECK(open_creates_excludes_and_truncates), CHECK(writes_append_and_leave_holes),
    CHECK(descriptors_are_for_what_they_were_opened), CHECK(names_have_255_bytes_and_paths_end),
    CHECK(symlinks_hold_a_text_and_do_not_go_round), CHECK(links_are_names_of_one_file),
    CHECK(unlinked_files_go_on_while_they_are_open), CHECK(renames_replace_and_refuse),
    CHECK(directories_are_made_and_taken_when_empty), CHECK(listings_have_every_name_once), CHECK(modes_and_owners_are_kept),
    CHECK(set_id_bits_go_when_somebody_writes), CHECK(what_is_made_belongs_to_who_made_it),
    CHECK(searching_wants_the_right_to), CHECK(sizes_are_set_up_and_down), CHECK(times_are_set_and_go_on),
    CHECK(special_files_are_what_they_were_made), CHECK(locks_keep_others_out), CHECK(attributes_are_made_replaced_and_taken),
    CHECK(what_is_mapped_is_the_file), CHECK(what_is_synced_is_copied),
};

int main(int count, char **given)
{
    int bad = 0;
    if (count != 4) {
        fprintf(stderr, "posix DIRECTORY virtual|squash|passthrough none|auto|always\n");
        return 2;
    }
    virtual_owners = !strcmp(given[2], "virtual");
    uncached = !strcmp(given[3], "none");
    memset(longest, 'n', 256);
    umask(022);
    for (size_t at = 0; at < sizeof checks / sizeof *checks; at++) {
        char place[PATH_MAX];
        int status = 0;
        about = checks[at].name;
        snprintf(place, sizeof place, "%s/%s", given[1], about);
        pid_t child = fork();
        if (child == 0) {
            works(mkdir(place, 0755));
            works(chdir(place));
            checks[at].act();
            _exit(0);
        }
        if (waitpid(child, &status, 0) != child || status) {
            bad = 1;
            if (WIFSIGNALED(status))
                printf("%s: signal %d\n", about, WTERMSIG(status));
        }
    }
    return bad;
}
