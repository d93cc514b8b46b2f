/*
 * The loader starts bridge's proxy inside a container whose image knows nothing of bridge.
 *
 * The proxy is larger than one ConfigMap may be, so it arrives as the pieces of one gzip file:
 * proxy.000, proxy.001, ... beside this program. The loader inflates them into memory (a memfd)
 * and executes that, with its own arguments and environment, unchanged. A failure is one line on
 * stderr and exit status 1.
 *
 * It is freestanding: no libc, no allocation, no thread. Memory: 64 KiB of input, the 32 KiB window
 * that deflate demands, the tables, and the memfd itself; the proxy is never held twice.
 *
 * It runs as any user, on a read-only root, without capabilities, under the runtime's default
 * seccomp profile. Environment that it reads, and leaves in place:
 *   BRIDGE_LOADER_DIR    a writable folder (an emptyDir): used instead of memory where the node
 *                        refuses to create or to execute a memfd (vm.memfd_noexec=2, a seccomp profile)
 *   BRIDGE_LOADER_CHECK  not empty: unpack and verify, print "ok SIZE", execute nothing
 *
 * Formats: RFC 1951 (deflate), RFC 1952 (gzip). Built and proven by `make loader check-loader`.
 */
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* ---- the kernel's side ---- */

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_execve = 59, SYS_exit_group = 231,
       SYS_openat = 257, SYS_unlinkat = 263, SYS_memfd_create = 319, SYS_execveat = 322 };
enum { O_NOFOLLOW = 0400000 };

static long sys5(long n, long a, long b, long c, long d, long e)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
	                 : "rcx", "r11", "memory");
	return r;
}

__asm__(".text\n.globl _start\n_start:\n"
        "xor %ebp,%ebp\nmov %rsp,%rdi\nand $-16,%rsp\ncall start\nhlt\n");

#elif defined(__aarch64__)
enum { SYS_unlinkat = 35, SYS_openat = 56, SYS_close = 57, SYS_read = 63, SYS_write = 64,
       SYS_exit_group = 94, SYS_execve = 221, SYS_memfd_create = 279, SYS_execveat = 281 };
enum { O_NOFOLLOW = 0100000 };

static long sys5(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}

__asm__(".text\n.globl _start\n_start:\n"
        "mov x29,#0\nmov x30,#0\nmov x0,sp\nbl start\nbrk #1\n");

#else
#error "no system calls written down for this architecture"
#endif

enum {
	O_RDONLY = 0, O_WRONLY = 01, O_CREAT = 0100, O_EXCL = 0200, O_CLOEXEC = 02000000,
	AT_FDCWD = -100, AT_EMPTY_PATH = 0x1000,
	MFD_CLOEXEC = 1, MFD_EXEC = 0x10, /* MFD_EXEC: since Linux 6.3, EINVAL before */
	EPERM = 1, ENOENT = 2, EINTR = 4, EACCES = 13, EINVAL = 22, ENOSYS = 38,
};

/* ---- limits ---- */

enum {
	INPUT = 64 << 10,    /* bytes read at a time */
	WINDOW = 32 << 10,   /* deflate's largest distance (RFC 1951, section 2) */
	MAX_SIZE = 64 << 20, /* of the unpacked proxy: damaged pieces must not fill the node's memory */
	MAX_PIECES = 1000,   /* three digits */
	MAX_PATH = 4096,     /* the kernel's own limit */
	MAX_BITS = 15,       /* longest code (RFC 1951, section 3.2.7) */
	FAST_BITS = 10,      /* codes up to this length are found in one look */
	SYMBOLS = 288,       /* literals, lengths and the two that never occur */
};

/* ---- failing ---- */

static char path[MAX_PATH + 16]; /* of the piece being read */

static u32 length(const char *s)
{
	u32 n = 0;
	while (s[n])
		n++;
	return n;
}

static char line[MAX_PATH + 256];
static u32 line_len;

static void say(const char *s)
{
	while (*s && line_len < sizeof line - 1)
		line[line_len++] = *s++;
}

static void say_number(u64 n)
{
	char digits[21];
	u32 i = sizeof digits - 1;
	digits[i] = 0;
	do {
		digits[--i] = '0' + n % 10;
		n /= 10;
	} while (n);
	say(digits + i);
}

static void finish(int fd, int code)
{
	line[line_len++] = '\n';
	sys5(SYS_write, fd, (long)line, line_len, 0, 0);
	for (;;)
		sys5(SYS_exit_group, code, 0, 0, 0, 0);
}

/* The errors that a person is likely to meet here, by name. */
static const char *errno_name(long e)
{
	switch (e) {
	case 1: return "operation not permitted";
	case 2: return "no such file or directory";
	case 5: return "input/output error";
	case 7: return "argument list too long";
	case 8: return "exec format error";
	case 12: return "out of memory";
	case 13: return "permission denied";
	case 17: return "file exists";
	case 20: return "not a directory";
	case 22: return "invalid argument";
	case 26: return "text file busy";
	case 28: return "no space left";
	case 30: return "read-only file system";
	case 38: return "not implemented by this kernel";
	case 122: return "quota exceeded";
	}
	return "error";
}

/* die prints "bridge loader: WHAT SUBJECT: ERROR (errno N)HINT" and ends the program. */
static void die_hint(const char *what, const char *subject, long err, const char *hint)
{
	line_len = 0;
	say("bridge loader: ");
	say(what);
	say(subject);
	if (err) {
		say(": ");
		say(errno_name(-err));
		say(" (errno ");
		say_number(-err);
		say(")");
	}
	say(hint);
	finish(2, 1);
}

static void die(const char *what, const char *subject, long err) { die_hint(what, subject, err, ""); }

static void damaged(const char *why) { die("the carried proxy is damaged: ", why, 0); }

/* ---- the pieces, as one stream of bytes ---- */

static u8 in[INPUT];
static u32 in_pos, in_len, piece;
/* In .data on purpose: without a byte of data in the file, kernels before 6.6 cannot set up .bss. */
static int in_fd = -1;
static u32 folder_len; /* path[0:folder_len] is the folder of the pieces */

static void name_piece(u32 n)
{
	const char *name = "/proxy.";
	u32 i = folder_len;
	while (*name)
		path[i++] = *name++;
	path[i++] = '0' + n / 100;
	path[i++] = '0' + n / 10 % 10;
	path[i++] = '0' + n % 10;
	path[i] = 0;
}

/* next_byte returns the next byte of the stream, or -1 after the last piece. */
static int next_byte(void)
{
	while (in_pos == in_len) {
		if (in_fd < 0) {
			if (piece == MAX_PIECES)
				return -1;
			name_piece(piece);
			long fd = sys5(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0);
			if (fd == -ENOENT && piece > 0)
				return -1;
			if (fd < 0)
				die("open ", path, fd);
			in_fd = fd;
			piece++;
		}
		long n = sys5(SYS_read, in_fd, (long)in, INPUT, 0, 0);
		if (n == -EINTR)
			continue;
		if (n < 0 || n > INPUT)
			die("read ", path, n);
		if (n == 0) {
			sys5(SYS_close, in_fd, 0, 0, 0, 0);
			in_fd = -1;
			continue;
		}
		in_pos = 0;
		in_len = n;
	}
	return in[in_pos++];
}

/* ---- bits: the first one is the lowest of the first byte ---- */

static u64 hold;   /* bits read and not yet taken */
static u32 n_hold; /* how many; below 48 */

/* fill makes n (at most 32) bits available, or as many as there are. */
static void fill(u32 n)
{
	while (n_hold < n) {
		int c = next_byte();
		if (c < 0)
			return;
		hold |= (u64)c << n_hold;
		n_hold += 8;
	}
}

static void drop(u32 n)
{
	if (n > n_hold)
		damaged("it ends too early, a piece is missing or cut");
	hold >>= n;
	n_hold -= n;
}

static u32 take(u32 n)
{
	fill(n);
	u32 v = hold & (((u64)1 << n) - 1);
	drop(n);
	return v;
}

/* ---- what comes out ---- */

static u8 window[WINDOW]; /* the last 32 KiB; window[0:w_pos] is not written yet */
static u32 w_pos, crc;
static u64 written;
static int out_fd;
static u32 crc_table[256];

static void make_crc_table(void)
{
	for (u32 i = 0; i < 256; i++) {
		u32 c = i;
		for (u32 k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
		crc_table[i] = c;
	}
}

static void flush(void)
{
	u32 c = crc;
	for (u32 i = 0; i < w_pos; i++)
		c = crc_table[(c ^ window[i]) & 255] ^ c >> 8;
	crc = c;
	for (u32 done = 0; done < w_pos;) {
		long n = sys5(SYS_write, out_fd, (long)(window + done), w_pos - done, 0, 0);
		if (n == -EINTR)
			continue;
		if (n <= 0 || n > w_pos - done)
			die("write the unpacked proxy", "", n);
		done += n;
	}
	written += w_pos;
	w_pos = 0;
	if (written > MAX_SIZE)
		damaged("it unpacks to more than 64 MiB");
}

static void emit(u8 b)
{
	window[w_pos++] = b;
	if (w_pos == WINDOW)
		flush();
}

static void copy(u32 len, u32 distance)
{
	if (distance > written + w_pos || distance > WINDOW)
		damaged("it refers to bytes before its start");
	while (len--)
		emit(window[(w_pos - distance) & (WINDOW - 1)]);
}

/* ---- Huffman codes (RFC 1951, section 3.2.2) ---- */

struct code {
	u16 count[MAX_BITS + 1];    /* codes of each length */
	u16 symbol[SYMBOLS];        /* in the order of their codes */
	u16 fast[1 << FAST_BITS];   /* by the next bits: symbol << 4 | length, 0 if longer or none */
};

/* build makes c from the code lengths of n symbols. A code that leaves room is refused, save one with at
 * most one symbol (of one bit), where lone is set: that is how a block with at most one distance is written. */
static void build(struct code *c, const u8 *lengths, u32 n, int lone)
{
	u16 at[MAX_BITS + 1]; /* index in symbol of the next symbol of each length */
	u16 next[MAX_BITS + 1]; /* its code */

	for (u32 i = 0; i <= MAX_BITS; i++)
		c->count[i] = 0;
	for (u32 i = 0; i < 1 << FAST_BITS; i++)
		c->fast[i] = 0;
	for (u32 i = 0; i < n; i++)
		c->count[lengths[i]]++;
	u32 used = n - c->count[0];
	c->count[0] = 0;

	int left = 1;
	u32 code = 0;
	at[0] = at[1] = 0;
	for (u32 l = 1; l <= MAX_BITS; l++) {
		left = 2 * left - c->count[l];
		if (left < 0)
			damaged("it has a code with too many symbols");
		code = (code + c->count[l - 1]) << 1;
		next[l] = code;
		if (l < MAX_BITS)
			at[l + 1] = at[l] + c->count[l];
	}
	if (left > 0 && !(lone && used == c->count[1] && used <= 1))
		damaged("it has a code with too few symbols");

	for (u32 i = 0; i < n; i++) {
		u32 l = lengths[i];
		if (l == 0)
			continue;
		c->symbol[at[l]++] = i;
		u32 k = next[l]++;
		if (l > FAST_BITS)
			continue;
		u32 reversed = 0; /* codes arrive with their first bit lowest */
		for (u32 b = 0; b < l; b++)
			reversed |= (k >> b & 1) << (l - 1 - b);
		for (u32 j = reversed; j < 1 << FAST_BITS; j += 1u << l)
			c->fast[j] = i << 4 | l;
	}
}

static u32 decode(const struct code *c)
{
	fill(MAX_BITS);
	u32 e = c->fast[hold & ((1 << FAST_BITS) - 1)];
	if (e) {
		drop(e & 15);
		return e >> 4;
	}
	u32 code = 0, first = 0, index = 0;
	for (u32 l = 1; l <= MAX_BITS; l++) {
		code |= hold >> (l - 1) & 1;
		u32 n = c->count[l];
		if (code < first + n) { /* code >= first: shorter ones have been passed */
			drop(l);
			return c->symbol[index + code - first];
		}
		index += n;
		first = (first + n) << 1;
		code <<= 1;
	}
	if (n_hold < MAX_BITS)
		damaged("it ends too early, a piece is missing or cut");
	damaged("it has bits that are no code");
	return 0;
}

/* ---- blocks (RFC 1951, section 3.2.3) ---- */

static struct code literals, distances;

static void coded_block(void)
{
	static const u16 length_base[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43,
	                                    51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
	static const u8 length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3,
	                                    3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};

	for (;;) {
		u32 s = decode(&literals);
		if (s < 256) {
			emit(s);
			continue;
		}
		if (s == 256)
			return;
		s -= 257;
		if (s >= 29)
			damaged("it has a length that does not exist");
		u32 len = length_base[s] + take(length_extra[s]);
		u32 d = decode(&distances);
		if (d >= 30)
			damaged("it has a distance that does not exist");
		/* Two codes for each power of two from 4 on: 1, 2, 3, 4, 5, 7, 9, 13, ... */
		u32 extra = d < 2 ? 0 : d / 2 - 1;
		u32 distance = d < 2 ? d + 1 : ((2 + (d & 1)) << extra) + 1;
		copy(len, distance + take(extra));
	}
}

static void fixed_codes(void)
{
	u8 lengths[SYMBOLS];
	u32 i = 0;
	while (i < 144)
		lengths[i++] = 8;
	while (i < 256)
		lengths[i++] = 9;
	while (i < 280)
		lengths[i++] = 7;
	while (i < SYMBOLS)
		lengths[i++] = 8;
	build(&literals, lengths, SYMBOLS, 0);
	for (i = 0; i < 32; i++)
		lengths[i] = 5;
	build(&distances, lengths, 32, 0);
}

static void dynamic_codes(void)
{
	static const u8 order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
	u8 lengths[286 + 30];
	u32 n_literals = take(5) + 257, n_distances = take(5) + 1, n_lengths = take(4) + 4;
	u32 n = n_literals + n_distances;

	if (n_literals > 286 || n_distances > 30)
		damaged("it has a code with too many symbols");
	for (u32 i = 0; i < 19; i++)
		lengths[i] = 0;
	for (u32 i = 0; i < n_lengths; i++)
		lengths[order[i]] = take(3);
	build(&literals, lengths, 19, 0); /* used for the lengths first */

	for (u32 i = 0; i < n;) {
		u32 s = decode(&literals), value = 0, times = 1;
		switch (s) {
		case 16:
			if (i == 0)
				damaged("it repeats a code length before the first");
			value = lengths[i - 1];
			times = 3 + take(2);
			break;
		case 17:
			times = 3 + take(3);
			break;
		case 18:
			times = 11 + take(7);
			break;
		default:
			value = s;
		}
		if (times > n - i)
			damaged("it has too many code lengths");
		while (times--)
			lengths[i++] = value;
	}
	if (lengths[256] == 0)
		damaged("it has a block that cannot end");
	build(&literals, lengths, n_literals, 1);
	build(&distances, lengths + n_literals, n_distances, 1);
}

static void stored_block(void)
{
	drop(n_hold & 7);
	u32 len = take(16);
	if (take(16) != (len ^ 0xffff))
		damaged("it has a stored block of unclear length");
	while (len--)
		emit(take(8));
}

/* unpack writes the proxy to fd: one gzip member, with nothing before, behind or optional in it,
 * which is what internal/carry/pack writes. */
static void unpack(int fd)
{
	piece = in_pos = in_len = n_hold = w_pos = 0;
	hold = written = 0;
	crc = 0xffffffff;
	out_fd = fd;

	if (take(8) != 0x1f || take(8) != 0x8b || take(8) != 8 || take(8) != 0)
		damaged("it does not start as a plain gzip file");
	take(32); /* time */
	take(16); /* effort, system */
	for (u32 last = 0; !last;) {
		last = take(1);
		switch (take(2)) {
		case 0:
			stored_block();
			break;
		case 1:
			fixed_codes();
			coded_block();
			break;
		case 2:
			dynamic_codes();
			coded_block();
			break;
		default:
			damaged("it has a block of unknown kind");
		}
	}
	flush();
	drop(n_hold & 7);
	if (take(32) != (crc ^ 0xffffffff))
		damaged("its checksum is wrong");
	if (take(32) != (u32)written)
		damaged("its size is wrong");
	fill(1);
	if (n_hold)
		damaged("bytes follow its end");
}

/* ---- starting it ---- */

static const char *env(char **envp, const char *name)
{
	for (; *envp; envp++) {
		u32 i = 0;
		while (name[i] && (*envp)[i] == name[i])
			i++;
		if (!name[i] && (*envp)[i] == '=')
			return *envp + i + 1;
	}
	return "";
}

/* execute returns only an error. The second way is for profiles that forbid execveat. */
static long execute(int fd, char **argv, char **envp)
{
	long err = sys5(SYS_execveat, fd, (long)"", (long)argv, (long)envp, AT_EMPTY_PATH);
	line_len = 0;
	say("/proc/self/fd/");
	say_number(fd);
	line[line_len] = 0;
	sys5(SYS_execve, (long)line, (long)argv, (long)envp, 0, 0);
	return err;
}

static void check(void)
{
	line_len = 0;
	say("ok ");
	say_number(written);
	finish(1, 0);
}

static char file[MAX_PATH + 16];

/* from_file unpacks into a file of folder instead of memory; why is what refused memory. */
static void from_file(const char *folder, const char *why, long err, char **argv, char **envp, int only_check)
{
	const char *name = "/.bridge-proxy";
	u32 n = length(folder);

	if (err != -EPERM && err != -EACCES && err != -ENOSYS)
		die(why, "", err); /* a file would fare no better */
	if (n == 0)
		die_hint(why, "", err, "; let the node execute from memory (vm.memfd_noexec below 2), or name a "
		                       "writable folder in BRIDGE_LOADER_DIR");
	if (n > MAX_PATH - 1)
		die("BRIDGE_LOADER_DIR is too long", "", 0);
	for (u32 i = 0; i < n; i++)
		file[i] = folder[i];
	for (u32 i = 0; (file[n + i] = name[i]); i++)
		;
	/* One that a killed loader left. Not ours to write into: what O_EXCL finds may be a link. */
	sys5(SYS_unlinkat, AT_FDCWD, (long)file, 0, 0, 0);
	long fd = sys5(SYS_openat, AT_FDCWD, (long)file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0700, 0);
	if (fd < 0)
		die("create ", file, fd);
	unpack(fd);
	sys5(SYS_close, fd, 0, 0, 0, 0); /* a file open for writing is not executed */
	fd = sys5(SYS_openat, AT_FDCWD, (long)file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0, 0);
	sys5(SYS_unlinkat, AT_FDCWD, (long)file, 0, 0, 0);
	if (fd < 0)
		die("open ", file, fd);
	if (only_check)
		check();
	die("execute ", file, execute(fd, argv, envp));
}

/* start is called by _start with the initial stack: argc, argv, 0, environment, 0. */
__attribute__((used, noreturn)) void start(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	char **envp = argv + argc + 1;
	const char *self = argc > 0 ? argv[0] : "";

	/* The pieces are where the loader is: in argv[0]'s folder, by a bare name in internal/carry.MountPath. */
	u32 n = length(self);
	while (n > 0 && self[n - 1] != '/')
		n--;
	if (n == 0) {
		self = "/.bridge";
		n = length(self);
	} else {
		n--;
	}
	if (n > MAX_PATH)
		die("argv[0] is too long", "", 0);
	for (u32 i = 0; i < n; i++)
		path[i] = self[i];
	folder_len = n;

	const char *folder = env(envp, "BRIDGE_LOADER_DIR");
	int only_check = *env(envp, "BRIDGE_LOADER_CHECK") != 0;
	make_crc_table();

	const char *name = "bridge-proxy";
	long fd = sys5(SYS_memfd_create, (long)name, MFD_CLOEXEC | MFD_EXEC, 0, 0, 0);
	if (fd == -EINVAL)
		fd = sys5(SYS_memfd_create, (long)name, MFD_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		from_file(folder, "create a file in memory", fd, argv, envp, only_check);
	unpack(fd);
	if (only_check)
		check();
	long err = execute(fd, argv, envp);
	sys5(SYS_close, fd, 0, 0, 0, 0); /* gives the memory back before it is needed again */
	from_file(folder, "execute from memory", err, argv, envp, only_check);
	__builtin_unreachable();
}
