// Searches on behalf of requests, counted.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension ContiguousAllocator {
  /// Finds the longest run that could be emptied, free frames included; nil when every frame in that range is unmovable. A
  /// step a pageblock, and a read of the frames of a pageblock that could have a longer one. Takes no lock.
  package func longestEmptiableRun(where constraints: RunConstraints = RunConstraints()) -> FrameRun? {
    // Not counted: `vm.search_steps` are steps of the searches that `vm.searches` counts.
    var search = RunSearch(physical)
    return search.longestEmptiableRun(low: constraints.low, high: constraints.high)
  }

  /// Finds the run that is the cheapest to empty for a request, and has no frame of the runs in `tried`.
  func candidate(_ request: ContiguousRequest, _ means: Means, excluding tried: ExcludedRuns)
    -> RunSearch.Answer
  {
    counters.searches.add(1, ordering: .relaxed)
    return search {
      $0.candidate(run: request.count, where: request.constraints, excluding: tried, at: means)
    }
  }

  /// Runs a search, and counts its steps.
  func search<R>(_ body: (inout RunSearch) -> R) -> R {
    var search = RunSearch(physical)
    defer { counters.searchSteps.add(search.steps, ordering: .relaxed) }
    return body(&search)
  }

  /// Whether a request for such a run failed before, and nothing has changed for it.
  func hasFailedRecently(_ request: ContiguousRequest) -> Bool {
    let hasFailed = searchFailedRequests { $0.hasFailedRecently(request.count, request.constraints) }
    if hasFailed { counters.failedCacheHits.add(1, ordering: .relaxed) }
    return hasFailed
  }

  /// Enters a request for which no run can be emptied into the failed-request cache.
  func cacheFailure(of request: ContiguousRequest) {
    searchFailedRequests { $0.cacheFailedRequest(request.count, request.constraints) }
  }

  private func searchFailedRequests<R>(_ body: (inout RunSearch) -> R) -> R {
    var search = RunSearch(physical)
    defer { counters.failedCacheSteps.add(search.steps, ordering: .relaxed) }
    return body(&search)
  }
}
