// The simulated external memory behind the engine's memory port: it takes part in every clock cycle.
//
// What it drives changes only with the clock, and what it has offered stays until it is taken.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace {

// Bits of a port's value, whether that is a number or an array of words.
template <typename Port>
uint32_t get_bits(const Port& port, int place, int count) {
    uint64_t value = 0;
    if constexpr (requires { port[0]; }) {
        value = port[place / 32] >> place % 32;
        if (place % 32 + count > 32) value |= uint64_t(port[place / 32 + 1]) << (32 - place % 32);
    } else {
        value = uint64_t(port) >> place;
    }
    return uint32_t(value & ((uint64_t(1) << count) - 1));
}

template <typename Port>
void set_bits(Port& port, int place, int count, uint32_t value) {
    for (int bit = 0; bit < count; ++bit) {
        const uint64_t one = uint64_t(value >> bit & 1);
        const int where = place + bit;
        if constexpr (requires { port[0]; })
            port[where / 32] = (port[where / 32] & ~(1u << where % 32)) | uint32_t(one << where % 32);
        else
            port = (port & ~(uint64_t(1) << where)) | one << where;
    }
}

template <typename Model>
class Memory {
public:
    explicit Memory(Model* model) : model_(model) {}

    void configure(uint64_t size, uint32_t latency, uint32_t beat_cycles, uint32_t gap, uint32_t seed) {
        bytes_.assign(size, 0);
        latency_ = latency;
        beat_cycles_ = beat_cycles;
        gap_ = gap;
        random_ = seed;
        std::fill(std::begin(pause_), std::end(pause_), 0u);
    }

    std::vector<uint8_t>& bytes() { return bytes_; }

    // What has been handed over in the cycle that now ends, by the values before the clock's edge.
    void sample() {
        auto& m = *model_;
        if (m.memory_read_request_valid && m.memory_read_request_ready) {
            const Burst burst = burst_of(m.memory_read_request_payload);
            reads_.push_back({burst.address, burst.beats, now_ + latency_});
        }
        if (m.memory_read_data_valid && m.memory_read_data_ready) {
            Burst& burst = reads_.front();
            burst.address += MEMORY_BYTES;
            next_read_ = now_ + beat_cycles_;
            if (--burst.beats == 0) {
                reads_.pop_front();
                next_read_ += gap_;
            }
            read_taken_ = true;
        }
        if (m.memory_write_request_valid && m.memory_write_request_ready) {
            Burst burst = burst_of(m.memory_write_request_payload);
            writes_.push_back(burst);
        }
        if (m.memory_write_data_valid && m.memory_write_data_ready) {
            Burst& burst = writes_.front();
            const bool last = get_bits(m.memory_write_data_payload, 8 * MEMORY_BYTES + 1, 1);
            if (get_bits(m.memory_write_data_payload, 8 * MEMORY_BYTES, 1)) {
                if (inside(burst.address))
                    for (int n = 0; n < MEMORY_BYTES; ++n)
                        bytes_[burst.address + n] = uint8_t(get_bits(m.memory_write_data_payload, 8 * n, 8));
                else
                    burst.failed = true;
            }
            burst.address += MEMORY_BYTES;
            next_write_ = now_ + beat_cycles_;
            --burst.beats;
            if (last != (burst.beats == 0)) burst.failed = true;  // a burst of another length than announced
            if (burst.beats == 0 || last) {
                answers_.push_back({0, 0, now_ + latency_, burst.failed});
                writes_.pop_front();
                next_write_ += gap_;
            }
        }
        if (m.memory_write_done_valid && m.memory_write_done_ready) {
            answers_.pop_front();
            answer_taken_ = true;
        }
    }

    // Drive the cycle that now begins.
    void drive() {
        auto& m = *model_;
        ++now_;
        if (read_taken_) m.memory_read_data_valid = 0;
        if (answer_taken_) m.memory_write_done_valid = 0;
        read_taken_ = answer_taken_ = false;
        m.memory_read_request_ready = !stalled(0);
        if (!m.memory_read_data_valid && !reads_.empty() && reads_.front().when <= now_ && next_read_ <= now_ && !stalled(1)) {
            const Burst& burst = reads_.front();
            const bool known = inside(burst.address);
            for (int n = 0; n < MEMORY_BYTES; ++n) set_bits(m.memory_read_data_payload, 8 * n, 8, known ? bytes_[burst.address + n] : 0);
            set_bits(m.memory_read_data_payload, 8 * MEMORY_BYTES, 1, burst.beats == 1);
            set_bits(m.memory_read_data_payload, 8 * MEMORY_BYTES + 1, 1, !known);
            m.memory_read_data_valid = 1;
        }
        m.memory_write_request_ready = !stalled(2);
        m.memory_write_data_ready = !writes_.empty() && next_write_ <= now_ && !stalled(3);
        if (!m.memory_write_done_valid && !answers_.empty() && answers_.front().when <= now_ && !stalled(4)) {
            m.memory_write_done_payload = answers_.front().failed;
            m.memory_write_done_valid = 1;
        }
    }

private:
    struct Burst {
        uint64_t address;
        uint32_t beats;
        uint64_t when = 0;
        bool failed = false;
    };

    template <typename Port>
    static Burst burst_of(const Port& payload) {
        return {get_bits(payload, 0, 32), get_bits(payload, 32, 8) + 1};
    }

    bool inside(uint64_t address) const { return address + MEMORY_BYTES <= bytes_.size(); }

    // Pauses of a few cycles, and now and then a long one; by channel.
    bool stalled(int channel) {
        if (!random_) return false;
        if (pause_[channel]) {
            --pause_[channel];
            return true;
        }
        random_ ^= random_ << 13;
        random_ ^= random_ >> 17;
        random_ ^= random_ << 5;
        if (random_ % 4 == 0) pause_[channel] = random_ >> 8 & 3;
        if (random_ % 251 == 0) pause_[channel] = random_ >> 8 & 127;
        return pause_[channel];
    }

    Model* model_;
    std::vector<uint8_t> bytes_;
    uint64_t now_ = 0, next_read_ = 0, next_write_ = 0;
    uint32_t latency_ = 40, beat_cycles_ = 1, gap_ = 0, random_ = 0;
    uint32_t pause_[5] = {};
    bool read_taken_ = false, answer_taken_ = false;
    std::deque<Burst> reads_, writes_, answers_;
};

}  // namespace
