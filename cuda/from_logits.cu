// From the logits of both models to the tokens of a request, in one launch.
//
// A team of blocks, a cluster where there are clusters, takes a position: it brings the rows of p
// and q on chip, finds their laws, judges the draft token, and goes on to the next one. At the first
// that is not accepted it samples. Where a batch leaves multiprocessors idle, several teams take the
// positions of a request side by side, each as if it were reached, and the team that is reached
// writes the result (succession.h).
//
// A row crosses device memory once: the passes for the maximum, the thresholds, the weights and the
// sampling work on what is in shared memory. No probability is ever written.
#include <atomic>
#include <chrono>

#include "kernels.h"
#include "launch.h"
#include "logit_sampling.h"
#include "succession.h"
#include "team_law.h"

namespace rsk::from_logits {

static_assert(MAX_ROWS * MAX_TEAM <= INT32_MAX, "as many blocks as a launch may have");

// How a launch divides its work.
struct Division {
  int32_t warps;      // of a block
  int32_t team_size;  // blocks
  int32_t teams;      // of a request
  int32_t span;       // positions of a team
  bool is_resident;   // all teams are at work at once
  Tiling tiling;
};

// The draft tokens of a request. Each lane asks at once for the one of its position, so that nothing
// waits for them later.
struct Drafts {
  static constexpr int32_t INVALID = -2;
  const Batch& batch;
  int32_t b, lane, own;

  __device__ Drafts(const Batch& batch, int32_t b, int32_t lane)
      : batch(batch), b(b), lane(lane), own(ask(lane)) {}

  // Of position k; -1 behind the last, INVALID for what is no token. By all lanes of a warp.
  __device__ int32_t token(int32_t k) const {
    return k < 32 ? __shfl_sync(ALL_LANES, own, k) : ask(k);
  }

  // By all lanes of a warp: n accepted drafts and a token, which is negative if the request is
  // invalid.
  __device__ void write(int32_t n, int32_t token) const {
    int64_t* const row = batch.tokens + (int64_t)b * (batch.spec_len + 1);
#pragma unroll 1
    for (int32_t k = lane; k <= batch.spec_len; k += 32) {
      const int32_t draft = k < 32 ? own : ask(k);
      row[k] = token < 0 || k > n ? -1 : k == n ? token : draft;
    }
    if (lane == 0 && batch.num_accepted) batch.num_accepted[b] = token < 0 ? -1 : n;
  }

 private:
  __device__ int32_t ask(int32_t k) const {
    if (k >= batch.spec_len) return -1;
    const int64_t d = draft_token(batch, b, k);
    return d >= -1 && d < num_columns(batch) ? (int32_t)d : INVALID;
  }
};

// What the verdict on a draft token needs beside the laws; asked for early, as it comes from memory.
template <class Logit>
struct Judgement {
  int32_t d;
  Two<Element<Logit>> x;  // the logits of d, as they come
  double u;
};

template <class Logit>
__device__ Judgement<Logit> prepare_judgement(const Batch& batch, int32_t b, int32_t k, int32_t d,
                                              const Two<LogitRow<Logit>>& rows) {
  Judgement<Logit> of_draft{d, {}, 0.0};
  if (d >= 0 && d < rows.p.size) of_draft.x.p = rows.p.x[d];
  if (d >= 0 && d < rows.q.size) of_draft.x.q = rows.q.x[d];
  of_draft.u = coin(batch, b, k);
  return of_draft;
}

template <class Logit>
__device__ Verdict judge_with_laws(const Judgement<Logit>& of_draft,
                                   const LogitWeights<Logit>& position) {
  const bool p_is_invalid = is_invalid(position.laws.p);
  if (of_draft.d == -1) return p_is_invalid ? Verdict::invalid : Verdict::ended;
  const bool q_is_invalid = position.has_q() && is_invalid(position.laws.q);
  const int32_t v = of_draft.d;
  if (p_is_invalid && v < position.p.size) return Verdict::invalid;
  if (q_is_invalid && v < position.q.size) return Verdict::invalid;
  const float p = v < position.p.size
                      ? probability(position.laws.p, position.min_p, widen(of_draft.x.p), v)
                      : 0.0f;
  const float q = !position.has_q() ? 1.0f
                  : v < position.q.size
                      ? probability(position.laws.q, position.min_p, widen(of_draft.x.q), v)
                      : 0.0f;
  if (of_draft.u * (double)q < (double)p) return Verdict::accepted;
  return p_is_invalid || q_is_invalid ? Verdict::invalid : Verdict::rejected;
}

// The rows of a position, p's and q's.
template <class Logit>
__device__ Two<LogitRow<Logit>> rows_of(const Team& team, const Tiling& tiling, const Batch& batch,
                                        int32_t b, int32_t k) {
  Two<LogitRow<Logit>> rows;
  rows.p = LogitRow<Logit>::make(team, tiling, target_row<Logit>(batch, b, k), batch.vocab_size, 0);
  rows.q = rows.p;
  if (k < batch.spec_len && batch.draft_probs) {
    rows.q = LogitRow<Logit>::make(team, tiling, draft_row<Logit>(batch, b, k),
                                   batch.draft_vocab_size, 1);
  }
  return rows;
}

template <class Logit>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    kernel(LogitsBatch call, Division division, uint64_t* slots, uint64_t number) {
  TeamMemory& memory = shared_memory<TeamMemory>();
  Team team = join_team(memory.letters, division.team_size);
  open_candidates(memory.candidates, division.team_size);
  announce_to_cluster();
  wait_for_kernel_before();

  const Batch& batch = call.batch;
  const int32_t index = (int32_t)blockIdx.x / team.size;
  const int32_t b = index % batch.batch_size;
  const Succession succession{slots + b * Succession::slots_of(division.teams), number,
                              index / batch.batch_size, division.teams};
  const bool is_first_warp = team.rank == 0 && team.warp == 0;
  const Filter filter = filter_of(call.filters, b);
  if (!is_valid(filter)) {  // all teams of the request agree
    wait_for_cluster();
    if (is_first_warp && succession.index == 0) {
      write_result_with_warp(batch, b, 0, -1, team.lane);
      if (team.lane == 0 && call.laws) call.laws[b] = invalid_law();
    }
    return;
  }
  const int32_t top_k =
      filter.temperature != 0.0f && filter.top_k < num_columns(batch) ? (int32_t)filter.top_k : 0;
  const Drafts drafts(batch, b, team.lane);
  float scale = 0.0f;
  Two<uint32_t> lists{0, 0};
  const int32_t first = succession.index * division.span;
  const int32_t last = min(first + division.span, batch.spec_len + 1);
#pragma unroll 1
  for (int32_t k = first; k < last; ++k) {
    const bool may_have_q = k < batch.spec_len && batch.draft_probs;
    const Two<LogitRow<Logit>> rows = rows_of<Logit>(team, division.tiling, batch, b, k);
    // Before anything that waits. The rows that a resident team may not need are read beside those of
    // others: no time is lost.
    const bool is_over = !division.is_resident && succession.is_over(team.lane);
    if (!is_over) begin_rows(rows, may_have_q && !call.draft_laws);
    if (k == first) scale = scale_of(filter.temperature);  // a division
    const int32_t d = drafts.token(k);
    const bool has_q = may_have_q && d != -1;
    const bool knows_q = has_q && call.draft_laws;
    LogitWeights<Logit> position;
    Verdict verdict = Verdict::invalid;
    if (d != Drafts::INVALID) {
      const Judgement<Logit> of_draft = prepare_judgement(batch, b, k, d, rows);
      const bool wants_q = has_q && !knows_q;
      const Extent extent = measure(team, memory, rows, wants_q, top_k, is_over);
      let_next_kernel_start();
      if (extent.is_over) {
        if (is_first_warp) {
          succession.tell(Ending::stopped, team.lane);
          succession.wait_for_those_before(team.lane, succession.glance(team.lane));
        }
        return;
      }
      position.p = rows.p;
      position.q = rows.q;
      position.laws = team_laws(team, memory, rows, wants_q, extent, filter, scale, lists,
                                position.is_listed);
      if (knows_q) position.laws.q = call.draft_laws[(int64_t)b * batch.spec_len + k];
      position.min_p = filter.min_p;
      position.certain = has_q ? position.ROW_OF_Q : d;  // -1 is NO_Q
      if (call.laws && team.rank == 0 && threadIdx.x == 0) call.laws[b] = position.laws.p;
      verdict = judge_with_laws(of_draft, position);
      if (verdict == Verdict::accepted) continue;
    }
    wait_for_copies<0>();  // also those of rows that were not needed
    if (team.exchanges == 0) wait_for_cluster();
    if (is_first_warp) succession.tell(Ending::stopped, team.lane);
    const uint64_t seen = succession.glance(team.lane);
    int32_t token = -1;
    bool is_writer = is_first_warp;
    if (verdict != Verdict::invalid) {
      if (is_greedy(position.laws.p)) {
        token = (int32_t)position.laws.p.threshold;  // the only one with a weight
      } else if (position.is_listed && !team.is_alone()) {
        token = sample_from_list(team, memory.candidates, position, sample_word(batch, b, k));
        is_writer = token >= 0;
      } else {
        if (knows_q && position.is_plain()) {
          position.q.begin_copies(0, position.q.tiles_held);
          wait_for_copies<0>();
        }
        token = sample_with_team(team, memory.letters, position, sample_word(batch, b, k));
        is_writer = token >= 0;
      }
    }
    if (is_writer && succession.wait_for_those_before(team.lane, seen)) drafts.write(k, token);
    return;
  }
  if (is_first_warp) {
    succession.tell(Ending::accepted, team.lane);
    succession.wait_for_those_before(team.lane, succession.glance(team.lane));
  }
}

// ------------------------------------------------------------------------------ probabilities

template <class Logit>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    probabilities_kernel(LogitsBatch call, Division division, float* out) {
  TeamMemory& memory = shared_memory<TeamMemory>();
  Team team = join_team(memory.letters, division.team_size);
  open_candidates(memory.candidates, division.team_size);
  announce_to_cluster();
  wait_for_kernel_before();

  const Batch& batch = call.batch;
  const int32_t index = (int32_t)blockIdx.x / team.size;
  const int32_t b = index / (batch.spec_len + 1), k = index % (batch.spec_len + 1);
  const Filter filter = filter_of(call.filters, b);
  Two<LogitRow<Logit>> rows;
  rows.p = LogitRow<Logit>::make(team, division.tiling, target_row<Logit>(batch, b, k),
                                 batch.vocab_size, 0);
  rows.q = rows.p;
  RowLaw law = invalid_law();
  if (is_valid(filter)) {
    const int32_t top_k =
        filter.temperature != 0.0f && filter.top_k < batch.vocab_size ? (int32_t)filter.top_k : 0;
    begin_rows(rows, false);
    const Extent extent = measure(team, memory, rows, false, top_k, false);
    Two<uint32_t> lists{0, 0};
    bool is_listed;
    law = team_laws(team, memory, rows, false, extent, filter, scale_of(filter.temperature), lists,
                    is_listed).p;
  } else {
    wait_for_cluster();
  }
  let_next_kernel_start();
  float* row = out + (int64_t)index * batch.vocab_size;
  for (int32_t t = 0; t < rows.p.tiles; ++t) {
    const int32_t start = rows.p.start(t);
#pragma unroll 1
    for (int32_t j = 0; j < LogitRow<Logit>::PACK; ++j) {
      const int32_t v = start + j;
      if (v >= rows.p.end || v >= rows.p.size) break;
      row[v] = is_invalid(law)
                   ? law.normalizer
                   : probability(law, filter.min_p, widen(rows.p.x[v]), v);
    }
  }
}

// -------------------------------------------------------------------------------------- launch

// What a block may have beside TeamMemory, which the compiler may round up.
int32_t dynamic_memory(const Device& device) {
  return device.shared_memory - ((int32_t)sizeof(TeamMemory) + 127) / 128 * 128;
}

// A number that no other launch has, with a start that no other process has. The last two bits are 0.
uint64_t number_of_launch() {
  static std::atomic<uint64_t> next{
      mix((uint64_t)std::chrono::steady_clock::now().time_since_epoch().count() ^
          (uint64_t)(uintptr_t)&next)};
  return mix(next.fetch_add(0x9E3779B97F4A7C15ull)) & ~3ull;
}

int32_t divided(int32_t a, int32_t b) { return (a + b - 1) / b; }

// A tile for each warp, if all blocks fit on the device at once, and more warps in a block if each
// has a multiprocessor for itself. With top-k four, or more, for a team of at most eight: the fewer
// blocks, the tighter is the bound and the shorter the list. With more work eight tiles; or eleven,
// which is what the blocks of one multiprocessor can hold, when there are so many blocks that the
// cost of a team counts for more than an even last wave. Then blocks of four warps wait less for one
// another; with top-k the leader's list wants eight. The blocks of a team share a group of 16 or 18
// multiprocessors, where teams of 9 to 15 would leave a gap: of blocks of eight warps.
Division divide(const LogitsBatch& call, const Device& device, int32_t pack_size) {
  const Batch& batch = call.batch;
  const int32_t packs = divided(num_columns(batch), pack_size);
  const int32_t positions = batch.spec_len + 1;
  const int64_t all = (int64_t)batch.batch_size * positions;  // positions of all requests
  const int32_t most_in_team = device.largest_cluster();  // 1: there are no teams
  const bool has_top_k = call.filters.top_k || call.filters.all_top_k > 0;
  const auto team_of = [&](int32_t warps, int32_t tiles) {
    const int32_t size = divided(packs, 32 * warps * tiles);
    const bool leaves_gap = warps >= 8 && size > MAX_TEAM / 2;
    return leaves_gap || size > most_in_team ? most_in_team : size;
  };
  const auto resident = [&](int32_t warps) {  // blocks, as the registers allow
    return MAX_WARPS / warps * device.multiprocessors;
  };
  Division division;
  int32_t warps = 8, size = team_of(warps, 1);
  if (all * size > resident(warps)) {
    if (most_in_team > 1 && !has_top_k && packs <= 32 * 4 * 11 * most_in_team) warps = 4;
    size = team_of(warps, 8);
    if (all * size > 4 * resident(warps)) size = team_of(warps, 11);
  } else if (has_top_k && packs <= 32 * warps * MAX_TEAM / 2 * 24) {
    const int32_t tiles = divided(packs, 32 * warps * MAX_TEAM / 2);
    size = team_of(warps, tiles < 4 ? 4 : tiles);
  } else if (packs > 32 * warps * size && all * size <= resident(16)) {
    warps = 16;
  }
  division.warps = warps;
  division.team_size = size;
  // One position each, side by side, while multiprocessors are many; with more work, teams that go
  // on to the next position read less in vain. With top-k reading is little of the work.
  const int64_t share = all / device.multiprocessors;
  int32_t span = share < 1 ? 1 : share > 4 ? 4 : (int32_t)share;
  if (has_top_k && all * size <= 4 * resident(warps)) span = 1;
  if (span < divided(positions, 32)) span = divided(positions, 32);
  division.span = min(span, positions);
  division.teams = divided(positions, division.span);
  division.is_resident =
      (int64_t)batch.batch_size * division.teams * size <= resident(warps);
  division.tiling.piece = divided(packs, size * warps);
  division.tiling.tiles = divided(division.tiling.piece, 32);
  const int32_t rows = batch.draft_probs ? 2 : 1;
  const int32_t most = dynamic_memory(device) / (rows * 32 * warps * 16);
  division.tiling.held = min(division.tiling.tiles, most);
  return division;
}

// Call f(Logit{}): rows of one type need not be mixed for having different sizes.
template <class Function>
cudaError_t with_logit_type(Batch batch, const Function& f) {
  if (batch.dtype == batch.draft_dtype || !batch.draft_probs) {
    batch.draft_vocab_size = batch.vocab_size;
    batch.draft_dtype = batch.dtype;
  }
  return with_probability_type(batch, f);
}

template <auto* KERNEL, class... Arguments>
cudaError_t launch_teams(const LogitsBatch& call, const Division& division, const Device& device,
                         int64_t teams, cudaStream_t stream, Arguments... arguments) {
  static thread_local int prepared_for = -1;  // a device
  if (prepared_for != device.id) {
    cudaError_t error = cudaFuncSetAttribute(
        (const void*)KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_memory(device));
    if (error == cudaSuccess && device.largest_cluster() > 8) {
      error = cudaFuncSetAttribute((const void*)KERNEL,
                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    if (error != cudaSuccess) return error;
    prepared_for = device.id;
  }
  const int32_t threads = 32 * division.warps;
  auto config = launch_config(teams * division.team_size, threads, stream);
  const int32_t rows = call.batch.draft_probs ? 2 : 1;
  config.dynamicSmemBytes = (size_t)rows * threads * 16 * division.tiling.held;
  cudaLaunchAttribute attributes[3]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = (uint32_t)division.team_size;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
  attributes[1].val.clusterSchedulingPolicyPreference = cudaClusterSchedulingPolicyLoadBalancing;
  attributes[2].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[2].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = runs_on(KernelName::cluster, device.capability) ? 3 : 0;
  return cudaLaunchKernelEx(&config, KERNEL, call, division, arguments...);
}

template <class Function>
cudaError_t with_division(const LogitsBatch& call, const Function& f) {
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  return with_logit_type(call.batch, [&](auto logit) {
    return f(logit, divide(call, device, PACK_SIZE<decltype(logit)>), device);
  });
}

size_t workspace_bytes(const LogitsBatch& call) {
  size_t bytes = 0;
  with_division(call, [&](auto, const Division& division, const Device&) {
    bytes = (size_t)call.batch.batch_size * Succession::slots_of(division.teams) * sizeof(uint64_t);
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t launch(const LogitsBatch& call, void* workspace, cudaStream_t stream) {
  return with_division(call, [&](auto logit, const Division& division, const Device& device) {
    return launch_teams<kernel<decltype(logit)>>(call, division, device,
                        (int64_t)call.batch.batch_size * division.teams, stream,
                        (uint64_t*)workspace, number_of_launch());
  });
}

cudaError_t launch_probabilities(const LogitsBatch& call, float* out, cudaStream_t stream) {
  return with_division(call, [&](auto logit, const Division& division, const Device& device) {
    return launch_teams<probabilities_kernel<decltype(logit)>>(call, division, device,
                        (int64_t)call.batch.batch_size * (call.batch.spec_len + 1), stream, out);
  });
}

}  // namespace rsk::from_logits
