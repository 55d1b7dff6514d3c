/* Counts of mask pairs on packed bits: the compiled twin of boundary.py, with the same integers.

   A region is one mask in its bounding box: 64 pixels a word, aligned to the frame's word grid, with
   its boundary map beside it. An id map is looked at once, word by word; then only the boxes are touched. Matching asks, for each
   boundary pixel, whether the other boundary has a bit in any row of the disk's window, nearest rows
   first. No floating point is used. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

typedef uint64_t word;

#if defined(__GNUC__) || defined(__clang__)
#define POPCOUNT(x) ((int64_t)__builtin_popcountll(x))
#define LOWEST(x) ((int)__builtin_ctzll(x))
#define HIGHEST(x) (63 - (int)__builtin_clzll(x))
#else
static int64_t POPCOUNT(word x) { int64_t n = 0; while (x) { x &= x - 1; n++; } return n; }
static int LOWEST(word x) { int n = 0; while (!(x & 1)) { x >>= 1; n++; } return n; }
static int HIGHEST(word x) { int n = 0; while (x >>= 1) n++; return n; }
#endif

/* Bit counting is one instruction on any processor of the last fifteen years, but the compiler may
   only use it in a clone that is chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define COUNTING __attribute__((target_clones("popcnt", "default")))
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define COUNTING
#define WIDE
#endif
#if defined(__SSE2__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

typedef struct {
    PyObject_HEAD
    Py_ssize_t rows, columns;   /* of the full frame */
    Py_ssize_t top, bottom;     /* rows of the box, half open */
    Py_ssize_t left, right;     /* columns of the box */
    Py_ssize_t first, words;    /* first word and number of words per row */
    int64_t area, edges;
    word *mask, *edge;          /* (bottom - top) * words each, in one block */
} Region;

static void region_free(PyObject *self) {
    PyMem_RawFree(((Region *)self)->mask);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject RegionType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "refseg_bench.files._kernel.Region",
    .tp_doc = "A mask made ready for comparison.",
    .tp_basicsize = sizeof(Region),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = region_free,
};

/* A region of the given tight bounding box; its own box reaches one pixel further up and left. */
static Region *region_new(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t top, Py_ssize_t left,
                          Py_ssize_t bottom, Py_ssize_t right) {
    Region *r = PyObject_New(Region, &RegionType);
    if (!r) return NULL;
    memset((char *)r + sizeof(PyObject), 0, sizeof(Region) - sizeof(PyObject));
    r->rows = rows;
    r->columns = columns;
    if (bottom <= top || right <= left) return r;
    if (top > 0) top--;
    if (left > 0) left--;
    r->top = top;
    r->bottom = bottom;
    r->left = left;
    r->right = right;
    r->first = left / 64;
    r->words = (right - 1) / 64 - r->first + 1;
    size_t count = (size_t)(bottom - top) * (size_t)r->words;
    r->mask = PyMem_RawCalloc(2 * count, sizeof(word));
    if (!r->mask) {
        Py_DECREF(r);
        PyErr_NoMemory();
        return NULL;
    }
    r->edge = r->mask + count;
    return r;
}

/* Boundary map and counts, once the mask's bits are in place. */
COUNTING static void region_finish(Region *r) {
    Py_ssize_t n = r->words, height = r->bottom - r->top;
    Py_ssize_t last_word = (r->columns - 1) / 64 - r->first;
    word last_bit = (word)1 << ((r->columns - 1) % 64);
    for (Py_ssize_t y = 0; y < height; y++) {
        const word *here = r->mask + y * n;
        /* Below the box lies background, below the frame its own last row again. */
        const word *below = y + 1 < height ? here + n : (r->bottom == r->rows ? here : NULL);
        word *out = r->edge + y * n;
        for (Py_ssize_t i = 0; i < n; i++) {
            word m = here[i], b = below ? below[i] : 0;
            word m_next = i + 1 < n ? here[i + 1] : 0, b_next = below && i + 1 < n ? below[i + 1] : 0;
            word m_right = (m >> 1) | (m_next << 63), b_right = (b >> 1) | (b_next << 63);
            if (i == last_word) {
                m_right = (m_right & ~last_bit) | (m & last_bit);
                b_right = (b_right & ~last_bit) | (b & last_bit);
            }
            word e = (m ^ m_right) | (m ^ b) | (m ^ b_right);
            out[i] = e;
            r->area += POPCOUNT(m);
            r->edges += POPCOUNT(e);
        }
    }
}

/* 64 pixels as bits: which of them hold the id. */
static word pack64(const uint8_t *p, uint8_t id) {
    word out = 0;
#if defined(__SSE2__)
    __m128i want = _mm_set1_epi8((char)id);
    for (int k = 0; k < 4; k++) {
        __m128i v = _mm_loadu_si128((const __m128i *)(p + 16 * k));
        out |= (word)(uint16_t)_mm_movemask_epi8(_mm_cmpeq_epi8(v, want)) << (16 * k);
    }
#else
    for (int k = 0; k < 64; k++) out |= (word)(p[k] == id) << k;
#endif
    return out;
}

/* Is there anything but 0 in 128 bytes? */
static int any128(const uint8_t *p) {
#if defined(__SSE2__)
    __m128i any = _mm_setzero_si128();
    for (int k = 0; k < 8; k++) any = _mm_or_si128(any, _mm_loadu_si128((const __m128i *)(p + 16 * k)));
    return _mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) != 0xffff;
#else
    word any = 0, eight;
    for (int k = 0; k < 16; k++) any |= (memcpy(&eight, p + 8 * k, 8), eight);
    return any != 0;
#endif
}

typedef struct {
    Py_ssize_t top, left, bottom, right;
    word *plane;    /* which pixels of the frame hold the id, each row from a word on */
} Box;

static void box_add(Box *b, Py_ssize_t y, Py_ssize_t x, Py_ssize_t end) {
    if (!b->bottom) { b->top = y; b->left = x; b->right = end; }
    b->bottom = y + 1;
    if (x < b->left) b->left = x;
    if (end > b->right) b->right = end;
}

/* Fill the boxes of all nonzero ids; 0 without memory. */
INLINE int scan_by(const Py_buffer *map, Box *boxes, word (*pack)(const uint8_t *, uint8_t),
                   int (*any)(const uint8_t *)) {
    Py_ssize_t rows = map->shape[0], columns = map->shape[1], words = (columns + 63) / 64;
    for (Py_ssize_t y = 0; y < rows; y++) {
        const uint8_t *row = (const uint8_t *)map->buf + y * map->strides[0];
        for (Py_ssize_t x = 0; x < columns; x += 64) {
            while (x + 128 <= columns && !any(row + x)) x += 128;
            if (x >= columns) break;
            /* The last word of a row is that of its last 64 pixels without those looked at before. */
            int known = columns - x < 64 && columns > 64 ? (int)(x + 64 - columns) : 0;
            const uint8_t *p = row + x - known;
            uint8_t tail[64];
            if (columns < 64) p = memcpy(memset(tail, 0, 64), p, (size_t)columns);
            for (word here, left = ~pack(p, 0) >> known; left; left &= ~here) {
                uint8_t id = p[known + LOWEST(left)];
                Box *b = &boxes[id];
                if (!b->plane && !(b->plane = PyMem_RawCalloc((size_t)(rows * words), sizeof(word)))) return 0;
                here = pack(p, id) >> known;
                b->plane[y * words + x / 64] = here;
                box_add(b, y, x + LOWEST(here), x + HIGHEST(here) + 1);
            }
        }
    }
    return 1;
}

#if defined(AVX2)
AVX2 static word pack64_avx2(const uint8_t *p, uint8_t id) {
    __m256i want = _mm256_set1_epi8((char)id), low = _mm256_loadu_si256((const __m256i *)p),
            high = _mm256_loadu_si256((const __m256i *)(p + 32));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, want)) |
           (word)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, want)) << 32;
}

AVX2 static int any128_avx2(const uint8_t *p) {
    __m256i any = _mm256_setzero_si256();
    for (int k = 0; k < 4; k++) any = _mm256_or_si256(any, _mm256_loadu_si256((const __m256i *)(p + 32 * k)));
    return !_mm256_testz_si256(any, any);
}

AVX2 static int scan_avx2(const Py_buffer *map, Box *boxes) {
    return scan_by(map, boxes, pack64_avx2, any128_avx2);
}
#endif

static void free_planes(Box *boxes) {
    for (int id = 0; id < 256; id++) PyMem_RawFree(boxes[id].plane);
}

/* Bounding boxes and bits of all nonzero ids, by id: 256 that free_planes frees; a box with bottom 0 is of an
   id that doesn't occur. 0 with an exception set. */
static int scan(const Py_buffer *map, Box *boxes) {
    memset(boxes, 0, 256 * sizeof(Box));
#if defined(AVX2)
    if (__builtin_cpu_supports("avx2") ? scan_avx2(map, boxes) : scan_by(map, boxes, pack64, any128)) return 1;
#else
    if (scan_by(map, boxes, pack64, any128)) return 1;
#endif
    free_planes(boxes);
    PyErr_NoMemory();
    return 0;
}

/* The region of what a scan has found. */
static Region *region_of(const Py_buffer *map, const Box *b) {
    Py_ssize_t words = (map->shape[1] + 63) / 64;
    Region *r = region_new(map->shape[0], map->shape[1], b->top, b->left, b->bottom, b->right);
    if (!r || !r->mask) return r;
    for (Py_ssize_t y = r->top; y < r->bottom; y++)
        memcpy(r->mask + (y - r->top) * r->words, b->plane + y * words + r->first, (size_t)r->words * sizeof(word));
    region_finish(r);
    return r;
}

/* Each row of `in` with its bits spread by `step` to both sides; rows end in room for what is spread. */
WIDE static void spread(const word *restrict in, word *restrict out, Py_ssize_t count, int step) {
    for (Py_ssize_t i = 0; i < count; i++)
        out[i] = in[i] | in[i] << step | in[i - 1] >> (64 - step) | in[i] >> step | in[i + 1] << (64 - step);
}

/* Take out the bits that one of the two has. */
WIDE static void take(word *restrict left, const word *above, const word *below, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) left[i] &= ~(above[i] | below[i]);
}

COUNTING static int64_t count_bits(const word *words, Py_ssize_t count) {
    int64_t bits = 0;
    for (Py_ssize_t i = 0; i < count; i++) bits += POPCOUNT(words[i]);
    return bits;
}

/* Copy the boundary of a region onto a grid of `n` words a row that begins at (top, first). */
static void lay(const Region *r, word *grid, Py_ssize_t top, Py_ssize_t bottom, Py_ssize_t first, Py_ssize_t n) {
    Py_ssize_t from = r->first > first ? r->first : first;
    Py_ssize_t end = r->first + r->words < first + n ? r->first + r->words : first + n;
    if (from >= end) return;
    for (Py_ssize_t y = r->top > top ? r->top : top; y < bottom && y < r->bottom; y++)
        memcpy(grid + (y - top) * n + from - first, r->edge + (y - r->top) * r->words + from - r->first,
               (size_t)(end - from) * sizeof(word));
}

/* Boundary pixels of a with a boundary pixel of b within the disk; -1 without memory.

   Both lie on one grid, b's box and enough beside it. From the disk's outermost rows inwards b is
   spread to the width that the disk has there, and takes from a what it meets at that distance. */
static int64_t count_hits(const Region *a, const Region *b, Py_ssize_t radius) {
    Py_ssize_t high = radius < b->rows ? radius : b->rows, wide = radius < b->columns ? radius : b->columns;
    Py_ssize_t top = a->top > b->top - high ? a->top : b->top - high;
    Py_ssize_t bottom = a->bottom < b->bottom + high ? a->bottom : b->bottom + high;
    if (top >= bottom) return 0;
    Py_ssize_t first = (b->left + 64 * b->columns - wide) / 64 - b->columns;
    Py_ssize_t n = (b->right + wide - 1) / 64 - first + 1;
    Py_ssize_t own = (bottom - top) * n, count = own + 2 * high * n;
    word *block = PyMem_RawCalloc((size_t)(own + 2 * (count + 2)), sizeof(word));
    if (!block) return -1;
    word *left = block, *now = block + own + 1, *next = now + count + 2;
    lay(a, left, top, bottom, first, n);
    lay(b, now, top - high, bottom + high, first, n);
    int64_t before = count_bits(left, own);
    Py_ssize_t width = 0;
    for (Py_ssize_t d = high; d >= 0; d--) {
        Py_ssize_t want = width;
        while (want < wide && (want + 1) * (want + 1) + d * d <= radius * radius) want++;
        /* What is spread by `width` is so wide that the next step may be as wide without leaving gaps. */
        while (width < want) {
            Py_ssize_t step = want - width < 2 * width + 1 ? want - width : 2 * width + 1;
            if (step > 63) step = 63;
            spread(now, next, count, (int)step);
            word *swap = now;
            now = next;
            next = swap;
            width += step;
        }
        take(left, now + (high - d) * n, now + (high + d) * n, own);
    }
    int64_t hits = before - count_bits(left, own);
    PyMem_RawFree(block);
    return hits;
}

COUNTING static int64_t count_shared(const Region *a, const Region *b) {
    Py_ssize_t top = a->top > b->top ? a->top : b->top;
    Py_ssize_t bottom = a->bottom < b->bottom ? a->bottom : b->bottom;
    Py_ssize_t first = a->first > b->first ? a->first : b->first;
    Py_ssize_t end_a = a->first + a->words, end_b = b->first + b->words;
    Py_ssize_t end = end_a < end_b ? end_a : end_b;
    int64_t shared = 0;
    for (Py_ssize_t y = top; y < bottom; y++) {
        const word *row_a = a->mask + (y - a->top) * a->words - a->first;
        const word *row_b = b->mask + (y - b->top) * b->words - b->first;
        for (Py_ssize_t i = first; i < end; i++) shared += POPCOUNT(row_a[i] & row_b[i]);
    }
    return shared;
}

PyDoc_STRVAR(compare_doc, "compare(truth, answer, radius): counts of one pair of regions.");

static PyObject *compare(PyObject *self, PyObject *args) {
    Region *truth, *answer;
    Py_ssize_t radius;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!n", &RegionType, &truth, &RegionType, &answer, &radius)) return NULL;
    if (truth->rows != answer->rows || truth->columns != answer->columns || radius < 0 || radius > 1 << 20) {
        PyErr_SetString(PyExc_ValueError, "regions of one frame and a sensible radius are needed");
        return NULL;
    }
    int64_t hit_truth = 0, hit_answer = 0;
    if (truth->edges && answer->edges) {
        hit_truth = count_hits(truth, answer, radius);
        hit_answer = count_hits(answer, truth, radius);
        if (hit_truth < 0 || hit_answer < 0) return PyErr_NoMemory();
    }
    return Py_BuildValue("(LLLLLLL)", (long long)count_shared(truth, answer), (long long)truth->area,
                         (long long)answer->area, (long long)truth->edges, (long long)answer->edges,
                         (long long)hit_truth, (long long)hit_answer);
}

/* A two-dimensional uint8 array: PyBUF_C_CONTIGUOUS, or PyBUF_STRIDES where its rows may lie apart. */
static int pixels_of(PyObject *object, Py_buffer *view, int flags) {
    if (PyObject_GetBuffer(object, view, PyBUF_ND | flags)) return -1;
    if (view->ndim == 2 && view->itemsize == 1 && view->shape[0] > 0 && view->shape[1] > 0 &&
        view->strides[1] == 1)
        return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "a two-dimensional array of bytes is needed");
    return -1;
}

/* Regions of all nonzero ids of an id map, by id. */
static PyObject *regions_of(const Py_buffer *map) {
    Box boxes[256];
    if (!scan(map, boxes)) return NULL;
    PyObject *out = PyDict_New();
    for (int id = 1; out && id < 256; id++) {
        if (!boxes[id].bottom) continue;
        Region *r = region_of(map, &boxes[id]);
        PyMem_RawFree(boxes[id].plane);
        boxes[id].plane = NULL;
        PyObject *key = PyLong_FromLong(id);
        if (!r || !key || PyDict_SetItem(out, key, (PyObject *)r)) Py_CLEAR(out);
        Py_XDECREF(key);
        Py_XDECREF(r);
    }
    free_planes(boxes);
    return out;
}

PyDoc_STRVAR(from_labels_doc, "from_labels(map): regions of all nonzero ids of an id map, by id.");

static PyObject *from_labels(PyObject *self, PyObject *object) {
    Py_buffer view;
    (void)self;
    if (pixels_of(object, &view, PyBUF_STRIDES)) return NULL;
    PyObject *out = regions_of(&view);
    PyBuffer_Release(&view);
    return out;
}

PyDoc_STRVAR(from_mask_doc, "from_mask(mask): region of a mask of 0 and 1.");

static PyObject *from_mask(PyObject *self, PyObject *object) {
    Py_buffer view;
    Box boxes[256];
    (void)self;
    if (pixels_of(object, &view, PyBUF_STRIDES)) return NULL;
    Region *r = NULL;
    if (scan(&view, boxes)) {
        r = region_of(&view, &boxes[1]);
        free_planes(boxes);
    }
    PyBuffer_Release(&view);
    return (PyObject *)r;
}

/* Run lengths of compressed COCO counts, background first, into room for one per byte; -1 if they are damaged. */
static Py_ssize_t runs_of(const char *text, Py_ssize_t length, int64_t total, int64_t *runs) {
    Py_ssize_t n = 0, at = 0;
    int64_t sum = 0;
    while (at < length) {
        int64_t value = 0;
        int shift = 0, more = 1;
        while (more) {
            if (at >= length || shift > 55) return -1;
            int group = (unsigned char)text[at++] - 48;
            if (group < 0 || group > 63) return -1;
            value |= (int64_t)(group & 0x1f) << shift;
            more = group & 0x20;
            shift += 5;
            if (!more && (group & 0x10)) value |= -((int64_t)1 << shift);
        }
        if (n > 2) value += runs[n - 2];
        if (value < 0 || (sum += value) > total) return -1;
        runs[n++] = value;
    }
    return sum == total ? n : -1;
}

/* The same in memory of their own, to be freed; NULL with an exception set. */
static int64_t *runs_in(const char *text, Py_ssize_t length, int64_t total, Py_ssize_t *n) {
    int64_t *runs = PyMem_RawMalloc((size_t)(length + 1) * sizeof *runs);
    if (!runs) return (int64_t *)PyErr_NoMemory();
    *n = runs_of(text, length, total, runs);
    if (*n >= 0) return runs;
    PyMem_RawFree(runs);
    PyErr_SetString(PyExc_ValueError, "the run lengths are damaged or of another size");
    return NULL;
}

PyDoc_STRVAR(sound_doc, "sound(counts, pixels): whether COCO run lengths are whole and cover so many pixels.");

static PyObject *sound(PyObject *self, PyObject *args) {
    const char *text;
    Py_ssize_t length, pixels;
    int64_t few[256], *runs = few;
    (void)self;
    if (!PyArg_ParseTuple(args, "y#n", &text, &length, &pixels)) return NULL;
    if (length > 256 && !(runs = PyMem_RawMalloc((size_t)length * sizeof *runs))) return PyErr_NoMemory();
    Py_ssize_t n = runs_of(text, length, pixels, runs);
    if (runs != few) PyMem_RawFree(runs);
    return PyBool_FromLong(n > 0);
}

static void set_bits(word *row, Py_ssize_t low, Py_ssize_t high) {
    Py_ssize_t a = low / 64, b = high / 64;
    word from = ~(word)0 << (low % 64), to = ~(word)0 >> (63 - high % 64);
    if (a == b) { row[a] |= from & to; return; }
    row[a] |= from;
    for (Py_ssize_t i = a + 1; i < b; i++) row[i] = ~(word)0;
    row[b] |= to;
}

PyDoc_STRVAR(from_rle_doc,
             "from_rle(counts, rows, columns): region of COCO run lengths; the runs go along the rows.");

static PyObject *from_rle(PyObject *self, PyObject *args) {
    const char *text;
    Py_ssize_t length, rows, columns;
    (void)self;
    if (!PyArg_ParseTuple(args, "y#nn", &text, &length, &rows, &columns)) return NULL;
    if (rows < 1 || columns < 1 || rows > 1 << 20 || columns > 1 << 20) {
        PyErr_SetString(PyExc_ValueError, "no frame has this size");
        return NULL;
    }
    Py_ssize_t n;
    int64_t *runs = runs_in(text, length, (int64_t)rows * columns, &n);
    if (!runs) return NULL;
    Box box = {0};
    int64_t at = 0;
    for (Py_ssize_t i = 0; i < n; at += runs[i++]) {
        if (!(i & 1) || !runs[i]) continue;
        Py_ssize_t first = (Py_ssize_t)(at / columns), last = (Py_ssize_t)((at + runs[i] - 1) / columns);
        if (first == last) {
            box_add(&box, first, (Py_ssize_t)(at % columns), (Py_ssize_t)((at + runs[i] - 1) % columns) + 1);
        } else {
            box_add(&box, first, 0, columns);
            box_add(&box, last, 0, columns);
        }
    }
    Region *r = region_new(rows, columns, box.top, box.left, box.bottom, box.right);
    if (r && r->mask) {
        Py_ssize_t shift = r->first * 64;
        at = 0;
        for (Py_ssize_t i = 0; i < n; at += runs[i++]) {
            if (!(i & 1) || !runs[i]) continue;
            int64_t end = at + runs[i];
            for (int64_t from = at; from < end;) {
                Py_ssize_t y = (Py_ssize_t)(from / columns), x = (Py_ssize_t)(from % columns);
                int64_t stop = (int64_t)(y + 1) * columns;
                if (stop > end) stop = end;
                set_bits(r->mask + (y - r->top) * r->words, x - shift, x - shift + (Py_ssize_t)(stop - from) - 1);
                from = stop;
            }
        }
        region_finish(r);
    }
    PyMem_RawFree(runs);
    return (PyObject *)r;
}

PyDoc_STRVAR(paint_doc, "paint(counts, value, out): give the pixels of COCO run lengths a value.");

static PyObject *paint(PyObject *self, PyObject *args) {
    const char *text;
    Py_ssize_t length, n;
    unsigned char value;
    PyObject *target;
    Py_buffer out;
    (void)self;
    if (!PyArg_ParseTuple(args, "y#bO", &text, &length, &value, &target)) return NULL;
    if (pixels_of(target, &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) return NULL;
    Py_ssize_t rows = out.shape[0], columns = out.shape[1];
    uint8_t *pixels = out.buf;
    int64_t *runs = runs_in(text, length, (int64_t)rows * columns, &n);
    for (Py_ssize_t i = 0, at = 0; runs && i < n; at += runs[i++]) {
        for (Py_ssize_t from = at, end = at + runs[i]; (i & 1) && from < end;) {
            Py_ssize_t y = from % rows, count = end - from < rows - y ? end - from : rows - y;
            Py_ssize_t place = y * columns + from / rows;
            for (from += count; count--; place += columns) pixels[place] = value;
        }
    }
    PyBuffer_Release(&out);
    if (!runs) return NULL;
    PyMem_RawFree(runs);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(encode_doc, "encode(mask): COCO run lengths of a mask of 0 and 1.");

static PyObject *encode(PyObject *self, PyObject *object) {
    Py_buffer view;
    Box boxes[256];
    (void)self;
    if (pixels_of(object, &view, PyBUF_C_CONTIGUOUS)) return NULL;
    Py_ssize_t rows = view.shape[0], columns = view.shape[1];
    const uint8_t *pixels = view.buf;
    if (!scan(&view, boxes)) { PyBuffer_Release(&view); return NULL; }
    Box b = boxes[1];
    Py_ssize_t height = b.bottom - b.top, width = b.right - b.left;
    /* At most one run begins at every pixel of the box, and one after it. */
    int64_t *runs = PyMem_RawMalloc((size_t)(height * width + width + 4) * sizeof *runs);
    PyObject *out = NULL;
    Py_ssize_t n = 0;
    char *text = NULL;
    if (!runs) { PyErr_NoMemory(); goto done; }
    int64_t begun = 0;
    int state = 0;
    for (Py_ssize_t x = b.left; x < b.right; x++) {
        const uint8_t *column = pixels + x;
        int64_t base = (int64_t)x * rows;
        if (state && b.top > 0) { runs[n++] = base - begun; begun = base; state = 0; }
        for (Py_ssize_t y = b.top; y < b.bottom; y++) {
            if (column[y * columns] != state) {
                runs[n++] = base + y - begun;
                begun = base + y;
                state = !state;
            }
        }
        if (state && b.bottom < rows) {
            runs[n++] = base + b.bottom - begun;
            begun = base + b.bottom;
            state = 0;
        }
    }
    if (state && b.right < columns) {
        runs[n++] = (int64_t)b.right * rows - begun;
        begun = (int64_t)b.right * rows;
    }
    if ((int64_t)rows * columns > begun || !n) runs[n++] = (int64_t)rows * columns - begun;
    text = PyMem_RawMalloc((size_t)n * 13);
    if (!text) { PyErr_NoMemory(); goto done; }
    Py_ssize_t length = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int64_t value = i > 2 ? runs[i] - runs[i - 2] : runs[i];
        for (int more = 1; more;) {
            int group = (int)(value & 0x1f);
            value >>= 5;
            more = group & 0x10 ? value != -1 : value != 0;
            text[length++] = (char)(group + (more ? 0x20 : 0) + 48);
        }
    }
    out = PyBytes_FromStringAndSize(text, length);
done:
    PyMem_RawFree(text);
    PyMem_RawFree(runs);
    free_planes(boxes);
    PyBuffer_Release(&view);
    return out;
}

static uint8_t paeth(int a, int b, int c) {
    int p = a + b - c, pa = abs(p - a), pb = abs(p - b), pc = abs(p - c);
    return (uint8_t)(pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
}

/* Undo filter 1, 3 or 4 of a row below another. Where 8 bytes are 0 and what stands above doesn't change, as in
   most of a mask, the pixel before them is repeated. */
static void unfilter_row(int kind, const uint8_t *in, const uint8_t *up, uint8_t *row, Py_ssize_t n) {
    const word each = ~(word)0 / 255;
    uint8_t a = 0, c = 0;
    for (Py_ssize_t x = 0; x < n;) {
        word eight, above;
        if (n - x >= 8 && (memcpy(&eight, in + x, 8), !eight) &&
            (kind == 1 || (memcpy(&above, up + x, 8), above == each * (kind == 3 ? a : c)))) {
            memset(row + x, a, 8);
            x += 8;
            continue;
        }
        uint8_t b = up[x];
        a = (uint8_t)(in[x] + (kind == 1 ? a : kind == 3 ? (a + b) / 2 : paeth(a, b, c)));
        row[x++] = a;
        c = b;
    }
}

/* Undo the row filters of an 8-bit one-channel PNG of n columns; 0 if one is of no known kind. */
static int unfilter_rows(const uint8_t *raw, uint8_t *pixels, Py_ssize_t rows, Py_ssize_t n) {
    /* Above the first row lies background, which its own pixels are until they are written. */
    const uint8_t *up = memset(pixels, 0, (size_t)n);
    for (Py_ssize_t y = 0; y < rows; y++) {
        const uint8_t *in = raw + y * (n + 1) + 1;
        uint8_t *row = pixels + y * n;
        if (in[-1] > 4) return 0;
        if (!in[-1]) memcpy(row, in, (size_t)n);
        else if (in[-1] != 2) unfilter_row(in[-1], in, up, row, n);
        else for (Py_ssize_t x = 0; x < n; x++) row[x] = (uint8_t)(in[x] + up[x]);
        up = row;
    }
    return 1;
}

PyDoc_STRVAR(unfilter_doc, "unfilter(raw, out): undo the row filters of an 8-bit one-channel PNG.");

static PyObject *unfilter(PyObject *self, PyObject *args) {
    Py_buffer raw, out;
    PyObject *target;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*O", &raw, &target)) return NULL;
    if (pixels_of(target, &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) { PyBuffer_Release(&raw); return NULL; }
    Py_ssize_t rows = out.shape[0], n = out.shape[1];
    int fine = raw.len == rows * (n + 1) && unfilter_rows(raw.buf, out.buf, rows, n);
    PyBuffer_Release(&raw);
    PyBuffer_Release(&out);
    return PyBool_FromLong(fine);
}

PyDoc_STRVAR(from_rows_doc,
             "from_rows(raw, rows, columns): from_labels of the inflated rows of an 8-bit one-channel PNG; "
             "None if one has a filter of no known kind.");

static PyObject *from_rows(PyObject *self, PyObject *args) {
    Py_buffer raw;
    Py_ssize_t shape[2], strides[2];
    uint8_t *pixels = NULL;
    PyObject *out = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nn", &raw, &shape[0], &shape[1])) return NULL;
    Py_ssize_t rows = shape[0], n = shape[1];
    const uint8_t *filters = raw.buf;
    if (rows < 1 || n < 1 || raw.len / rows != n + 1 || raw.len % rows) {
        PyErr_SetString(PyExc_ValueError, "the rows are of another size");
        goto done;
    }
    Py_buffer map = {.buf = (uint8_t *)raw.buf + 1, .shape = shape, .strides = strides};
    strides[0] = n + 1;
    strides[1] = 1;
    for (Py_ssize_t y = 0; y < rows; y++) {
        if (!filters[y * (n + 1)]) continue;
        pixels = PyMem_RawMalloc((size_t)(rows * n));
        if (!pixels) { PyErr_NoMemory(); goto done; }
        map.buf = pixels;
        strides[0] = n;
        if (!unfilter_rows(raw.buf, pixels, rows, n)) { out = Py_NewRef(Py_None); goto done; }
        break;
    }
    out = regions_of(&map);
done:
    PyMem_RawFree(pixels);
    PyBuffer_Release(&raw);
    return out;
}

PyDoc_STRVAR(split_doc,
             "split(values, out): write where values are not 0; return (the only other value, -1 for "
             "several, 0 for none; whether there is a 0).");

static PyObject *split(PyObject *self, PyObject *args) {
    PyObject *source, *target;
    Py_buffer in, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &source, &target)) return NULL;
    if (pixels_of(source, &in, PyBUF_C_CONTIGUOUS)) return NULL;
    if (pixels_of(target, &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) { PyBuffer_Release(&in); return NULL; }
    int fine = in.shape[0] == out.shape[0] && in.shape[1] == out.shape[1];
    uint8_t any = 0, all = 255, low = 255;
    if (fine) {
        const uint8_t *from = in.buf;
        uint8_t *to = out.buf;
        Py_ssize_t n = in.shape[0] * in.shape[1];
        for (Py_ssize_t i = 0; i < n; i++) {
            uint8_t v = from[i], none = (uint8_t)(v ? 0 : 255);
            to[i] = (uint8_t)(v != 0);
            any |= v;
            all &= v | none;
            low = v < low ? v : low;
        }
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (!fine) {
        PyErr_SetString(PyExc_ValueError, "the two arrays have different shapes");
        return NULL;
    }
    return Py_BuildValue("iN", !any || any == all ? any : -1, PyBool_FromLong(!low));
}

PyDoc_STRVAR(keep_pages_doc, "keep_pages(): let glibc keep freed memory of this process (no effect elsewhere).");

/* A decoded frame is larger than the size from which malloc maps fresh pages for every block; mapping
   and unmapping them would cost more than half of the scoring time. */
static PyObject *keep_pages(PyObject *self, PyObject *none) {
    (void)self, (void)none;
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 128 << 20);
#endif
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"compare", compare, METH_VARARGS, compare_doc},
    {"from_labels", from_labels, METH_O, from_labels_doc},
    {"from_mask", from_mask, METH_O, from_mask_doc},
    {"from_rle", from_rle, METH_VARARGS, from_rle_doc},
    {"from_rows", from_rows, METH_VARARGS, from_rows_doc},
    {"encode", encode, METH_O, encode_doc},
    {"paint", paint, METH_VARARGS, paint_doc},
    {"keep_pages", keep_pages, METH_NOARGS, keep_pages_doc},
    {"sound", sound, METH_VARARGS, sound_doc},
    {"split", split, METH_VARARGS, split_doc},
    {"unfilter", unfilter, METH_VARARGS, unfilter_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "Counts of mask pairs on packed bits.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) {
    if (PyType_Ready(&RegionType) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    /* To be raised with that of compiled.py wherever a function changes. */
    if (made && PyModule_AddIntConstant(made, "REVISION", 4)) Py_CLEAR(made);
    return made;
}
