// Several of these, in guests and on the host, write the same tree: writers DIRECTORY WHO SECONDS SEED [exact]
//
// Each does, from the line "go" on, what programs do that share a directory: lines appended to the same logs, names that
// one alone may make, files put in the place of others, records side by side in one file, names that come and go. What must
// not happen is told and ends it. At the end it tells what it did, a line each, to be compared with the tree. `exact`: nothing
// is cached here, so that a counter under a lock, a directory, counts. WHO is a letter from a to h.
//
// writers DIRECTORY look MILLISECONDS: waits for each line "NAME TEXT" until the file has that text, or with "-" is not there,
// and tells how many times it looked. Each time that begins later than that is one in which it has to be so.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOGS = 4, CURRENT = 4, CLAIMS = 1 << 16, SLOTS = 100, SLOT = 100, CHURN = 20, WRITERS = 8, LONG = 1 << 16 };

static char who;
static unsigned long long state;
static long cached, pace, appended[LOGS], won[CLAIMS], wins, slots[SLOTS], replaced, counted, done[8];
// As much as all may append while a guest believes in a size.
static char text[LONG + 100], seen[256 * LONG];
static struct timespec begun;

static void wrong(const char *format, ...)
{
    int number = errno;
    va_list more;
    va_start(more, format);
    printf("wrong: ");
    vprintf(format, more);
    printf(" (%s)\n", strerror(number));
    va_end(more);
    exit(1);
}

static void check(long result, const char *what, const char *name)
{
    if (result < 0)
        wrong("%s %s", what, name);
}

static long elapsed(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000;
}

// The same draws for everybody: xorshift*, not the C library's.
static long draw(long below)
{
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (long)((state * 2685821657736338717ULL >> 33) % (unsigned long long)below);
}

static long all_of(const char *name, int file, off_t from)
{
    long length = 0, more;
    while ((more = pread(file, seen + length, sizeof seen - (size_t)length - 1, from + length)) > 0)
        length += more;
    check(more, "read", name);
    seen[length] = 0;
    return length;
}

static void write_all(const char *name, int file, const char *what, size_t length)
{
    ssize_t written = write(file, what, length);
    check(written, "write", name);
    if ((size_t)written != length)
        wrong("write %s: %zd of %zu", name, written, length);
}

// Lines in one log, through one open file or more.
static void append(void)
{
    char name[20];
    struct stat before;
    long log = draw(LOGS), lines = 1 + draw(3), filler = draw(200), length = 0;
    snprintf(name, sizeof name, "log%ld", log);
    int file = open(name, O_WRONLY | O_APPEND), reader = open(name, O_RDONLY);
    check(file < 0 ? file : reader, "open", name);
    check(fstat(file, &before), "stat", name);
    for (long line = 0; line < lines; line++) {
        length = snprintf(text, sizeof text, "%c %ld %0*d\n", who, appended[log]++, (int)filler + 1, 0);
        write_all(name, file, text, (size_t)length);
    }
    // What was written is there for who wrote it, whatever the others do: at once, or as soon as a size is asked for again.
    for (long written = elapsed(), late = 0;; ) {
        late = elapsed() - written > cached;
        if (all_of(name, reader, before.st_size) >= length && strstr(seen, text))
            break;
        if (late)
            wrong("%s: %.*s is not behind %ld", name, (int)length - 1, text, (long)before.st_size);
    }
    close(file);
    close(reader);
}

// A name that one alone gets, and that all want at about the same time.
static void claim(void)
{
    static long last = -1;
    char name[30], own[30];
    long number = elapsed() / pace, result;
    if (number == last || number >= CLAIMS)
        return;
    last = number;
    snprintf(name, sizeof name, "claims/%ld", number);
    snprintf(own, sizeof own, "own/%c", who);
    if (number % 3 == 0) {
        result = open(name, O_CREAT | O_EXCL | O_WRONLY, 0600);
        if (result >= 0) {
            write_all(name, (int)result, &who, 1);
            close((int)result);
        }
    } else if (number % 3 == 1) {
        result = mkdir(name, 0700);
    } else {
        result = link(own, name);
    }
    if (result < 0 && errno != EEXIST)
        wrong("claim %s", name);
    if (result >= 0)
        won[wins++] = number;
}

// A whole file in the place of another.
static void replace(void)
{
    char name[20], made[20];
    long length = draw(LONG);
    snprintf(name, sizeof name, "current/%ld", draw(CURRENT));
    snprintf(made, sizeof made, "own/%c.new", who);
    int head = sprintf(text, "%c %ld %ld\n", who, ++replaced, length);
    memset(text + head, 'a' + (int)(replaced % 26), (size_t)length);
    int file = open(made, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    check(file, "create", made);
    write_all(made, file, text, (size_t)(head + length));
    close(file);
    check(rename(made, name), "rename to", name);
}

// One of those is there at any time, and whole.
static void read_one(void)
{
    char name[20], author;
    long version, length, whole;
    int head = 0;
    snprintf(name, sizeof name, "current/%ld", draw(CURRENT));
    int file = open(name, O_RDONLY);
    check(file, "open", name);
    whole = all_of(name, file, 0);
    if (sscanf(seen, "%c %ld %ld%n", &author, &version, &length, &head) != 3 || whole != head + 1 + length)
        wrong("%s: %ld bytes that begin with %.20s", name, whole, seen);
    for (long at = head + 1; at < whole; at++)
        if (seen[at] != 'a' + version % 26)
            wrong("%s: of version %ld of %c, byte %ld is %d", name, version, author, at, seen[at]);
    close(file);
}

// A record between those of others, in pages that they write too.
static void put(void)
{
    char record[SLOT + 1], back[SLOT + 1];
    long slot = draw(SLOTS);
    off_t at = (slot * WRITERS + who - 'a') * SLOT;
    int file = open("records", O_RDWR);
    check(file, "open", "records");
    slots[slot]++;
    snprintf(record, sizeof record, "%c %0*ld\n", who, SLOT - 3, slots[slot]);
    if (pwrite(file, record, SLOT, at) != SLOT || pread(file, back, SLOT, at) != SLOT)
        wrong("records at %ld", (long)at);
    if (memcmp(record, back, SLOT))
        wrong("records at %ld: %.*s, not %.*s", (long)at, SLOT - 1, back, SLOT - 1, record);
    close(file);
}

static void count(void)
{
    if (mkdir("lock", 0700) < 0) {
        if (errno != EEXIST)
            wrong("lock");
        return;
    }
    int file = open("counter", O_RDWR);
    check(file, "open", "counter");
    all_of("counter", file, 0);
    int length = sprintf(text, "%ld\n", atol(seen) + 1);
    write_all("counter", file, text, (size_t)length);
    close(file);
    counted++;
    check(rmdir("lock"), "rmdir", "lock");
}

// Names come and go; that another was there first is no fault.
static void churn(void)
{
    char name[20], other[20];
    long result = 0;
    snprintf(name, sizeof name, "churn/%ld", draw(CHURN));
    snprintf(other, sizeof other, "churn/%ld", draw(CHURN));
    switch (draw(8)) {
    case 0: case 1:
        result = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
        if (result >= 0) {
            write_all(name, (int)result, text, (size_t)draw(9000));
            close((int)result);
        }
        break;
    case 2: result = unlink(name); break;
    case 3: result = rename(name, other); break;
    case 4: result = mkdir(name, 0700); break;
    case 5: result = rmdir(name); break;
    case 6: result = symlink(other, name); break;
    default: {
        DIR *listed = opendir("churn");
        check(listed ? 0 : -1, "opendir", "churn");
        errno = 0;
        while (readdir(listed))
            ;
        result = errno ? -1 : 0;
        closedir(listed);
    }
    }
    // ESTALE (docs/mounts.md): what was looked up has another name by now, and again.
    static const int others[] = {ENOENT, EEXIST, EISDIR, ENOTDIR, ELOOP, ESTALE};
    int known = 0;
    for (size_t at = 0; at < sizeof others / sizeof *others; at++)
        known |= errno == others[at];
    if (result < 0 && !known)
        wrong("churn %s %s", name, other);
}

static int look(long limit)
{
    char line[200], name[100], wanted[100];
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%99s %99s", name, wanted) != 2)
            return 2;
        clock_gettime(CLOCK_MONOTONIC, &begun);
        for (long times = 1, late = 0;; times++) {
            struct stat about;
            late = elapsed() > limit;
            int file = open(name, O_RDONLY), right;
            if (file < 0) {
                right = errno == ENOENT && !strcmp(wanted, "-");
                snprintf(seen, sizeof seen, "%s", strerror(errno));
            } else {
                long length = all_of(name, file, 0);
                check(stat(name, &about), "stat", name);
                right = !strcmp(seen, wanted) && about.st_size == length;
                close(file);
            }
            if (right || late) {
                if (right)
                    printf("right %ld\n", times);
                else
                    printf("stale %s: %.60s\n", name, seen);
                break;
            }
        }
        fflush(stdout);
    }
    return 0;
}

int main(int given, char **values)
{
    static void (*const acts[])(void) = {append, claim, replace, read_one, put, churn, count};
    if (given < 4 || chdir(values[1]))
        return 2;
    if (!strcmp(values[2], "look"))
        return look(atol(values[3]));
    who = values[2][0];
    cached = given > 5 ? -1 : 1050;
    state = strtoull(values[4], NULL, 10) * 257 + (unsigned char)who;
    // Some hundred names, however long it goes on.
    pace = 20 + 2 * atol(values[3]);
    memset(text, 't', sizeof text);
    printf("ready\n");
    fflush(stdout);
    if (!fgets(seen, sizeof seen, stdin))
        return 2;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    while (elapsed() < atol(values[3]) * 1000) {
        long act = draw(given > 5 ? 7 : 6);
        acts[act]();
        done[act]++;
    }
    for (long log = 0; log < LOGS; log++)
        printf("appended %ld %ld\n", log, appended[log]);
    for (long at = 0; at < wins; at++)
        printf("won %ld\n", won[at]);
    for (long slot = 0; slot < SLOTS; slot++)
        printf("slot %ld %ld\n", slot, slots[slot]);
    printf("counted %ld\n", counted);
    for (long act = 0; act < 7; act++)
        printf("done %ld %ld\n", act, done[act]);
    return 0;
}
