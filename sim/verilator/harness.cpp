// The compiled engine as a shared library: Wishbone bursts, runs until the interrupt, and the units' timeline, with no caller in the loop.
//
// layout.h is generated with the library and says where in the `timeline` port each unit's bits lie.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.h"
#include "verilated.h"
#include "Vcelosia.h"
#ifdef MEMORY_BYTES
#include "memory.h"
#endif

double sc_time_stamp() { return 0; }

namespace {

// Cycles after which a bus access without an answer is given up.
constexpr int PATIENCE = 64;

struct Event {
    uint32_t unit;
    uint32_t index;  // of the instruction
    uint32_t start;  // cycle of the run
    uint32_t end;    // one past the last cycle
    uint32_t stall;  // cycles in between without progress
    uint32_t wait;   // cycles before `start` in which the unit was free and its next instruction lacked tokens
};

class Engine {
public:
    Engine() : context_(new VerilatedContext), model_(new Vcelosia(context_.get())) {
        model_->clk = 0;
        model_->bus_cyc = 0;
        model_->bus_stb = 0;
        model_->rst = 1;
        tick();
        tick();
        model_->rst = 0;
        tick();
        cycles_ = 0;
    }

    ~Engine() { model_->final(); }

    // One bus access; the word read goes to *value. False if the engine answers err or not at all.
    bool access(uint32_t address, bool write, uint32_t* value) {
        model_->bus_adr = address >> 2;
        model_->bus_we = write;
        model_->bus_sel = 15;
        model_->bus_dat_w = *value;
        model_->bus_cyc = 1;
        model_->bus_stb = 1;
        bool acknowledged = false;
        for (int n = 0; n < PATIENCE; ++n) {
            tick();
            if (model_->bus_ack || model_->bus_err) {
                acknowledged = model_->bus_ack;
                if (!write) *value = model_->bus_dat_r;
                break;
            }
        }
        // The slave sees the strobe in its cycle of acknowledgement and ends there.
        if (acknowledged || model_->bus_err) tick();
        model_->bus_cyc = 0;
        model_->bus_stb = 0;
        return acknowledged;
    }

    uint64_t run(uint64_t limit) {
        uint64_t cycle = 0;
        if (recording_) {
            begin_recording();
            for (; cycle < limit && !model_->irq; ++cycle) {
                record(uint32_t(cycle));
                tick();
            }
            end_recording(uint32_t(cycle));
        } else {
            for (; cycle < limit && !model_->irq; ++cycle) tick();
        }
        return cycle;
    }

    bool interrupt() const { return model_->irq; }
    void set_recording(bool on) { recording_ = on; }
    const std::vector<Event>& events() const { return events_; }
    uint64_t cycles() const { return cycles_; }
#ifdef MEMORY_BYTES
    Memory<Vcelosia>& memory() { return memory_; }
#endif

private:
    void tick() {
#ifdef MEMORY_BYTES
        memory_.sample();
#endif
        model_->clk = 1;
        model_->eval();
#ifdef MEMORY_BYTES
        memory_.drive();
#endif
        model_->clk = 0;
        model_->eval();
        ++cycles_;
    }

    void begin_recording() {
        events_.clear();
        for (uint32_t unit = 0; unit < TRACE_UNITS; ++unit) {
            open_[unit] = false;
            waited_[unit] = 0;
        }
    }

    // The 16 bits of the timeline from `place` on.
    uint32_t traced(int place) const {
        const auto& words = model_->timeline;
        const int next = place / 32 + 1;
        const uint64_t low = words[next - 1], high = next < TRACE_WORDS ? words[next] : 0;
        return uint32_t((high << 32 | low) >> place % 32) & 0xFFFF;
    }

    void record(uint32_t cycle) {
        for (uint32_t unit = 0; unit < TRACE_UNITS; ++unit) {
            const bool busy = traced(TRACE_BUSY[unit]) & 1;
            const uint32_t index = traced(TRACE_INDEX[unit]);
            if (open_[unit] && (!busy || current_[unit].index != index)) close(unit, cycle);
            if (busy) {
                if (!open_[unit]) {
                    current_[unit] = {TRACE_NUMBER[unit], index, cycle, 0, 0, waited_[unit]};
                    waited_[unit] = 0;
                    open_[unit] = true;
                }
                current_[unit].stall += traced(TRACE_STALL[unit]) & 1;
            } else {
                waited_[unit] += traced(TRACE_WAITING[unit]) & 1;
            }
        }
    }

    void close(uint32_t unit, uint32_t cycle) {
        current_[unit].end = cycle;
        events_.push_back(current_[unit]);
        open_[unit] = false;
    }

    void end_recording(uint32_t cycle) {
        for (uint32_t unit = 0; unit < TRACE_UNITS; ++unit)
            if (open_[unit]) close(unit, cycle);
    }

    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vcelosia> model_;
#ifdef MEMORY_BYTES
    Memory<Vcelosia> memory_{model_.get()};
#endif
    uint64_t cycles_ = 0;
    bool recording_ = false;
    std::vector<Event> events_;
    Event current_[TRACE_UNITS] = {};
    bool open_[TRACE_UNITS] = {};
    uint32_t waited_[TRACE_UNITS] = {};
};

}  // namespace

extern "C" {

Engine* celosia_create() { return new Engine; }

void celosia_destroy(Engine* engine) { delete engine; }

// Write or read `count` words from byte address `address` on; returns how many the engine acknowledged.
size_t celosia_write(Engine* engine, uint32_t address, const uint32_t* words, size_t count) {
    for (size_t n = 0; n < count; ++n) {
        uint32_t word = words[n];
        if (!engine->access(address + uint32_t(4 * n), true, &word)) return n;
    }
    return count;
}

size_t celosia_read(Engine* engine, uint32_t address, uint32_t* words, size_t count) {
    for (size_t n = 0; n < count; ++n)
        if (!engine->access(address + uint32_t(4 * n), false, &words[n])) return n;
    return count;
}

// Clock until the interrupt line is high, at most `limit` cycles; returns the cycles clocked.
uint64_t celosia_run(Engine* engine, uint64_t limit) { return engine->run(limit); }

uint64_t celosia_cycles(const Engine* engine) { return engine->cycles(); }

int celosia_interrupt(const Engine* engine) { return engine->interrupt(); }

// Record the units' work in the runs that follow; the events are those of the last run.
void celosia_record(Engine* engine, int on) { engine->set_recording(on); }

#ifdef MEMORY_BYTES
// Make the external memory `size` bytes of zeros, with this timing.
void celosia_memory(Engine* engine, uint64_t size, uint32_t latency, uint32_t beat_cycles, uint32_t gap, uint32_t seed) {
    engine->memory().configure(size, latency, beat_cycles, gap, seed);
}

// Copy to or from it; returns the bytes that are there.
size_t celosia_memory_write(Engine* engine, uint64_t address, const uint8_t* data, size_t count) {
    auto& bytes = engine->memory().bytes();
    if (address >= bytes.size()) return 0;
    count = std::min<size_t>(count, bytes.size() - address);
    std::copy(data, data + count, bytes.begin() + address);
    return count;
}

size_t celosia_memory_read(Engine* engine, uint64_t address, uint8_t* data, size_t count) {
    const auto& bytes = engine->memory().bytes();
    if (address >= bytes.size()) return 0;
    count = std::min<size_t>(count, bytes.size() - address);
    std::copy(bytes.begin() + address, bytes.begin() + address + count, data);
    return count;
}
#endif

size_t celosia_events(const Engine* engine, Event* events, size_t room) {
    const auto& all = engine->events();
    for (size_t n = 0; n < all.size() && n < room; ++n) events[n] = all[n];
    return all.size();
}
}
