// The compiled board as a shared library: bytes of the host link in and out, over the link's pins or past them.
//
// layout.h is generated with the library: it defines LINK_UART and DIVISOR, LINK_SPI or LINK_BYTES.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.h"
#include "verilated.h"
#include "Vcelosia.h"

double sc_time_stamp() { return 0; }

namespace {

class Board {
public:
    Board() : context_(new VerilatedContext), model_(new Vcelosia(context_.get())) {
        model_->clk = 0;
#if defined(LINK_UART)
        model_->rx = 1;
#elif defined(LINK_SPI)
        model_->cs_n = 1;
        model_->sck = 0;
        model_->copi = 0;
#else
        model_->i_valid = 0;
        model_->o_ready = 1;
#endif
        model_->rst = 1;
        tick();
        tick();
        model_->rst = 0;
        tick();
    }

    ~Board() { model_->final(); }

    void tick() {
        model_->clk = 1;
        model_->eval();
        model_->clk = 0;
        model_->eval();
        ++cycles_;
    }

    // Clock until all bytes are taken and answered.
    void exchange(const uint8_t* bytes, size_t count);

    bool running() const { return model_->running; }

    std::vector<uint8_t> received_;
    uint64_t cycles_ = 0;

private:
#if defined(LINK_UART)
    void tick_line();
    int sample_ = -1;  // cycles since the start bit of the byte that arrives
    uint32_t shift_ = 0;
#elif defined(LINK_SPI)
    void transfer(uint8_t byte);
#endif
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vcelosia> model_;
};

#if defined(LINK_UART)

// A cycle in which the line to the host is looked at: bits are sampled in their middle.
void Board::tick_line() {
    if (sample_ < 0 && !model_->tx) {
        sample_ = 0;
        shift_ = 0;
    }
    if (sample_ >= 0) {
        if (sample_ % DIVISOR == DIVISOR / 2) shift_ |= uint32_t(model_->tx) << (sample_ / DIVISOR);
        if (++sample_ == 10 * DIVISOR) {
            if (shift_ >> 9 & 1) received_.push_back(uint8_t(shift_ >> 1));
            sample_ = -1;
        }
    }
    tick();
}

void Board::exchange(const uint8_t* bytes, size_t count) {
    for (size_t n = 0; n < count; ++n) {
        const uint32_t levels = uint32_t(bytes[n]) << 1 | 1u << 9;
        for (int bit = 0; bit < 10; ++bit) {
            model_->rx = levels >> bit & 1;
            for (int cycle = 0; cycle < DIVISOR; ++cycle) tick_line();
        }
    }
    for (int quiet = 0; quiet < 2 * DIVISOR; ++quiet) {
        if (model_->busy || sample_ >= 0) quiet = 0;
        tick_line();
    }
}

#elif defined(LINK_SPI)

void Board::transfer(uint8_t byte) {
    uint8_t answer = 0;
    for (int bit = 7; bit >= 0; --bit) {
        model_->copi = byte >> bit & 1;
        for (int n = 0; n < 4; ++n) tick();
        answer = uint8_t(answer << 1 | model_->cipo);
        model_->sck = 1;
        for (int n = 0; n < 4; ++n) tick();
        model_->sck = 0;
    }
    received_.push_back(answer);
}

// The controller sends flags for as long as there may be something to fetch.
void Board::exchange(const uint8_t* bytes, size_t count) {
    model_->cs_n = 0;
    for (int n = 0; n < 4; ++n) tick();
    for (size_t n = 0; n < count; ++n) transfer(bytes[n]);
    for (int quiet = 0; quiet < 3; ++quiet) {
        if (model_->busy) quiet = 0;
        transfer(FLAG);
    }
    model_->cs_n = 1;
    for (int n = 0; n < 8; ++n) tick();
}

#else

void Board::exchange(const uint8_t* bytes, size_t count) {
    size_t taken = 0;
    // What is ready, and what is valid, depends on registers alone, so it may be read before the inputs have settled.
    while (taken < count || model_->busy) {
        model_->i_valid = taken < count;
        if (taken < count) {
            model_->i_payload = bytes[taken];
            taken += model_->i_ready;
        }
        if (model_->o_valid) received_.push_back(model_->o_payload);
        tick();
    }
    model_->i_valid = 0;
}

#endif

}  // namespace

extern "C" {

Board* celosia_create() { return new Board; }

void celosia_destroy(Board* board) { delete board; }

// Send bytes and clock until they are answered; returns how many came back.
size_t celosia_exchange(Board* board, const uint8_t* bytes, size_t count) {
    board->exchange(bytes, count);
    return board->received_.size();
}

// Fetch what came back and forget it.
void celosia_receive(Board* board, uint8_t* bytes) {
    for (uint8_t byte : board->received_) *bytes++ = byte;
    board->received_.clear();
}

// Clock without any byte on the line while a program runs, at most `limit` cycles; returns the cycles clocked.
uint64_t celosia_run(Board* board, uint64_t limit) {
    uint64_t cycle = 0;
    for (; cycle < limit && board->running(); ++cycle) board->tick();
    return cycle;
}

uint64_t celosia_cycles(const Board* board) { return board->cycles_; }
}
