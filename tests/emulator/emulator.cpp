// The scheduler of the emulator (see emulator.h) and the C entry points for the tests. It is compiled together with one
// kernel source, EUGEN_SOURCE, whose kernels EUGEN_KERNELS lists as X(name) X(name) ...
#include "system.h"

#include EUGEN_SOURCE

namespace emulator {

Index thread_index, block_index, block_size, grid_size;
unsigned char* shared;

namespace {

enum State { READY, AT_COLLECTIVE, AT_BARRIER, DONE };
const size_t STACK = 192 << 10, POISONED_STACK = 48 << 10;

struct Fiber {
  jmp_buf place;
  ucontext_t start;
  unsigned char* stack = nullptr;
  State state;
  bool fresh;
  int kind;
  void* argument;
  std::vector<std::pair<void*, const void*>> copies;
};

// Differences between runs of the same launch: which warps and lanes run first, and which end of an array touches an
// inaccessible page.
enum Order { FORWARDS, BACKWARDS, SHUFFLED };

std::vector<Fiber> fibers;
std::vector<int> arrived;  // at a collective, of each warp
int current, at_barrier, alive;
jmp_buf scheduler, end_of_launch;
char message[400];
void (*body)();

void switch_to_scheduler() {
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

void run_fiber() {
  body();
  if (!fibers[size_t(current)].copies.empty()) fail("ends with copies that it has not waited for");
  fibers[current].state = DONE;
  alive--;
  _longjmp(scheduler, 1);
}

void resume(int number) {
  current = number;
  thread_index.x = unsigned(number);
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[number];
  if (!fiber.fresh) _longjmp(fiber.place, 1);
  fiber.fresh = false;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_fiber, 0);
  setcontext(&fiber.start);
}

// Memory between two inaccessible pages, with the contents next to one of them. Because of alignment, up to 15 bytes
// after the contents are accessible. They are filled with a pattern that is checked at the end.
class Guarded {
 public:
  Guarded(const void* from, size_t bytes, bool at_end) : bytes_(bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t inner = (bytes + 16 + page - 1) / page * page;
    whole_ = inner + 2 * page;
    base_ = static_cast<unsigned char*>(mmap(nullptr, whole_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    first_ = base_ + page;
    last_ = first_ + inner;
    mprotect(first_, inner, PROT_READ | PROT_WRITE);
    memset(first_, 0xff, inner);
    data = at_end ? last_ - (bytes + 15) / 16 * 16 : first_;
    if (from) memcpy(data, from, bytes);
  }
  ~Guarded() { munmap(base_, whole_); }
  Guarded(const Guarded&) = delete;

  bool contains(const void* p) const { return p >= base_ && p < base_ + whole_; }
  bool slack_is_untouched() const {
    for (unsigned char* p = first_; p < last_; p++)
      if ((p < data || p >= data + bytes_) && *p != 0xff) return false;
    return true;
  }
  long offset(const void* p) const { return static_cast<const unsigned char*>(p) - data; }
  size_t bytes() const { return bytes_; }

  unsigned char* data;

 private:
  unsigned char *base_, *first_, *last_;
  size_t bytes_, whole_;
};

std::vector<Guarded*> arrays;  // those of the kernel's arguments, those they hold pointers to, then shared memory

// Who has read and written each two bytes of shared memory since the last barrier.
enum { NOBODY = -1, SEVERAL = -2 };
struct Access {
  unsigned block_phase = 0, warp_phase = 0;
  int warp = NOBODY, lane = NOBODY;
};
struct Cell {
  Access read, write;
};
std::vector<Cell> cells;
unsigned block_phase;               // barriers of the block
std::vector<unsigned> warp_phases;  // sync_warp's of each warp

// Whether there is no barrier between an access and the current thread, and the access was made by another thread.
bool races(const Access& access) {
  const int warp = current / 32;
  if (access.block_phase != block_phase || access.warp == NOBODY) return false;
  if (access.warp != warp) return true;
  return access.warp_phase == warp_phases[size_t(warp)] && access.lane != current % 32;
}

void remember(Access& access) {
  const int warp = current / 32, lane = current % 32;
  const unsigned warp_phase = warp_phases[size_t(warp)];
  if (access.block_phase != block_phase || access.warp == NOBODY)
    access = Access{block_phase, warp_phase, warp, lane};
  else if (access.warp != warp)
    access.warp = SEVERAL;
  else if (access.warp_phase != warp_phase)
    access.warp_phase = warp_phase, access.lane = lane;
  else if (access.lane != lane)
    access.lane = SEVERAL;
}

// The cells of [p, p + bytes), or none if that is not shared memory.
std::pair<Cell*, Cell*> cells_of(const void* p, int bytes) {
  const int64_t at = static_cast<const unsigned char*>(p) - shared;
  if (at < 0 || size_t(at + bytes) > 2 * cells.size()) return {nullptr, nullptr};
  return {cells.data() + at / 2, cells.data() + (at + bytes) / 2};
}

void on_bad_access(int, siginfo_t* info, void*) {
  for (size_t i = 0; i < arrays.size(); i++)
    if (arrays[i] && arrays[i]->contains(info->si_addr))
      fail("access at byte %ld of array %d, which has %zu bytes", arrays[i]->offset(info->si_addr), int(i),
           arrays[i]->bytes());
  fail("access at an address that belongs to no array");
}

void run_block(Order order, uint32_t& random) {
  const int threads = int(fibers.size()), warps = threads / 32;
  for (Fiber& fiber : fibers) {
    fiber.state = READY;
    fiber.fresh = true;
    fiber.copies.clear();
    memset(fiber.stack + STACK - POISONED_STACK, 0xff, POISONED_STACK);
  }
  arrived.assign(size_t(warps), 0);
  alive = threads;
  at_barrier = 0;
  cells.assign(cells.size(), Cell{});
  warp_phases.assign(size_t(warps), 0);
  while (alive) {
    bool progress = false;
    random = random * 1664525u + 1013904223u;
    const unsigned first = random >> 16;
    for (int turn = 0; turn < warps; turn++) {
      const int warp = order == FORWARDS    ? turn
                       : order == BACKWARDS ? warps - 1 - turn
                                            : int((unsigned(turn) + first) % unsigned(warps));
      bool again = true;
      while (again) {  // as far as this warp can run
        again = false;
        random = random * 1664525u + 1013904223u;
        const int shift = int(random >> 20);
        for (int i = 0; i < 32; i++) {
          const int lane = order == FORWARDS ? i : order == BACKWARDS ? 31 - i : (i * 5 + shift) % 32;
          const int number = warp * 32 + lane;
          if (fibers[size_t(number)].state != READY) continue;
          again = progress = true;
          resume(number);
        }
      }
    }
    if (!progress) fail("some threads wait at a barrier or collective that the others never reach");
  }
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<Arguments>*>(arguments[I])...);
}

void** kernel_arguments;

template <class... Arguments>
void call(void (*kernel)(Arguments...)) {
  call(kernel, kernel_arguments, std::index_sequence_for<Arguments...>());
}

void (*find_kernel(const std::string& name))() {
#define X(kernel) \
  if (name == #kernel) return [] { call(::kernel); };
  EUGEN_KERNELS
#undef X
  return nullptr;
}

}  // namespace

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int used = snprintf(message, sizeof message, "block %u, thread %d: ", block_index.x, current);
  vsnprintf(message + used, sizeof message - size_t(used), format, list);
  va_end(list);
  _longjmp(end_of_launch, 1);
}

void sync_block() {
  Fiber& fiber = fibers[size_t(current)];
  fiber.state = AT_BARRIER;
  if (++at_barrier < alive) return switch_to_scheduler();
  at_barrier = 0;
  block_phase++;
  for (Fiber& other : fibers)
    if (other.state == AT_BARRIER) other.state = READY;
}

void note_read(const void* p, int bytes) {
  for (auto [cell, end] = cells_of(p, bytes); cell != end; cell++) {
    if (races(cell->write)) fail("reads shared memory that another thread has written without a barrier between");
    remember(cell->read);
  }
}

void note_write(const void* p, int bytes) {
  for (auto [cell, end] = cells_of(p, bytes); cell != end; cell++) {
    if (races(cell->read)) fail("writes shared memory that another thread has read without a barrier between");
    if (races(cell->write)) fail("writes shared memory that another thread has written without a barrier between");
    remember(cell->write);
  }
}

void copy_later(void* to, const void* from) {
  memset(to, 0xff, 16);
  fibers[size_t(current)].copies.emplace_back(to, from);
}

void finish_copies() {
  for (auto [to, from] : fibers[size_t(current)].copies) memcpy(to, from, 16);
  fibers[size_t(current)].copies.clear();
}

void collective(int kind, void* argument, void (*all)(void**)) {
  const int warp = current / 32;
  Fiber* lanes = &fibers[size_t(warp) * 32];
  Fiber& fiber = fibers[size_t(current)];
  fiber.kind = kind;
  fiber.argument = argument;
  fiber.state = AT_COLLECTIVE;
  if (++arrived[size_t(warp)] < 32) return switch_to_scheduler();
  void* arguments[32];
  for (int i = 0; i < 32; i++) {
    if (lanes[i].kind != kind) fail("lanes of a warp came to different collectives");
    arguments[i] = lanes[i].argument;
  }
  all(arguments);
  if (kind == SYNC_WARP) warp_phases[size_t(warp)]++;
  arrived[size_t(warp)] = 0;
  for (int i = 0; i < 32; i++) lanes[i].state = READY;
}

}  // namespace emulator

using namespace emulator;

// Runs a kernel on copies of its arrays and copies them back. arguments[i] points to argument i. If sizes[i] is not
// negative, the argument is a pointer to an array of that many bytes, otherwise a value of -sizes[i] bytes. After the
// arguments come `reached` pointers to arrays that values hold pointers to. Returns null, or an error message.
extern "C" const char* emulate(const char* kernel, unsigned grid_x, unsigned grid_y, unsigned threads,
                               unsigned shared_bytes, void** arguments, const int64_t* sizes, int count, int reached,
                               int order) {
  message[0] = 0;
  body = find_kernel(kernel);
  if (!body) return "no such kernel";
  const bool at_end = order != BACKWARDS;
  const int all = count + reached;
  std::vector<void*> originals(size_t(all), nullptr), copies(size_t(all), nullptr), values(arguments, arguments + count);
  arrays.clear();
  for (int i = 0; i < all; i++) {
    arrays.push_back(nullptr);
    if (sizes[i] < 0) continue;
    originals[size_t(i)] = *static_cast<void**>(arguments[i]);
    arrays.back() = new Guarded(originals[size_t(i)], size_t(sizes[i]), at_end);
    copies[size_t(i)] = arrays.back()->data;
    if (i < count) values[size_t(i)] = &copies[size_t(i)];
  }
  std::vector<std::vector<void*>> structures(static_cast<size_t>(count));
  for (int i = 0; reached && i < count; i++) {
    if (sizes[i] >= 0 || -sizes[i] % int64_t(sizeof(void*))) continue;
    std::vector<void*>& words = structures[size_t(i)];
    words.resize(size_t(-sizes[i]) / sizeof(void*));
    memcpy(words.data(), arguments[i], size_t(-sizes[i]));
    for (void*& word : words)
      for (int j = count; j < all; j++)
        if (word == originals[size_t(j)]) {
          word = copies[size_t(j)];
          break;
        }
    values[size_t(i)] = words.data();
  }
  kernel_arguments = values.data();

  struct sigaction action = {}, before_segv, before_bus;
  action.sa_sigaction = on_bad_access;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before_segv);
  sigaction(SIGBUS, &action, &before_bus);

  fibers.resize(threads);
  for (Fiber& fiber : fibers)
    if (!fiber.stack) fiber.stack = static_cast<unsigned char*>(malloc(STACK));
  grid_size = Index{grid_x, grid_y, 1};
  block_size = Index{threads, 1, 1};
  uint32_t random = 12345;
  arrays.push_back(nullptr);
  cells.resize(shared_bytes / 2);
  if (!_setjmp(end_of_launch)) {
    for (unsigned number = 0; number < grid_x * grid_y; number++) {
      const unsigned block = order == BACKWARDS ? grid_x * grid_y - 1 - number : number;
      block_index = Index{block % grid_x, block / grid_x, 0};
      arrays.back() = new Guarded(nullptr, shared_bytes, at_end);
      shared = arrays.back()->data;
      run_block(Order(order), random);
      delete arrays.back();
      arrays.back() = nullptr;
    }
    for (int i = 0; i < all; i++) {
      if (!arrays[size_t(i)]) continue;
      if (!arrays[size_t(i)]->slack_is_untouched()) snprintf(message, sizeof message, "wrote outside of array %d", i);
      memcpy(originals[size_t(i)], copies[size_t(i)], size_t(sizes[i]));
    }
  }
  sigaction(SIGSEGV, &before_segv, nullptr);
  sigaction(SIGBUS, &before_bus, nullptr);
  for (Guarded* array : arrays) delete array;
  arrays.clear();
  for (Fiber& fiber : fibers) free(fiber.stack);
  fibers.clear();
  return message[0] ? message : nullptr;
}
