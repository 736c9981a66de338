// Searches on a machine that has only physical memory.

import MemoryPrimitives
import PhysicalMemory

@testable import ContiguousMemory

/// The steps of the searches in `body`.
func steps(_ memory: FrameAllocator, _ body: (inout RunSearch) -> Void) -> UInt64 {
  var search = RunSearch(memory)
  body(&search)
  return search.steps
}

extension RunSearch {
  /// The cheapest run when each page to be moved or written costs 1, and a busy or held one 8.
  mutating func candidate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(),
    excluding: ExcludedRuns = ExcludedRuns()
  ) -> Answer {
    candidate(run: count, where: constraints, excluding: excluding, at: PagesInTheWay())
  }
}

extension FrameAllocator {
  func candidate(
    run count: PageCount, where constraints: RunConstraints = RunConstraints(),
    excluding: ExcludedRuns = ExcludedRuns()
  ) -> RunSearch.Answer {
    var search = RunSearch(self)
    return search.candidate(run: count, where: constraints, excluding: excluding)
  }

  func candidate<Pricing: RunPricing>(
    run count: PageCount, where constraints: RunConstraints, excluding: ExcludedRuns, at pricing: Pricing
  ) -> RunSearch.Answer {
    var search = RunSearch(self)
    return search.candidate(run: count, where: constraints, excluding: excluding, at: pricing)
  }

  func longestEmptiableRun() -> FrameRun? {
    var search = RunSearch(self)
    return search.longestEmptiableRun()
  }

  func idlePages<Kinds: DirtyPageKinds>(
    enough: IdlePages, enoughInAll: UInt64 = .max, by kinds: Kinds
  ) -> IdlePages {
    var search = RunSearch(self)
    return search.idlePages(enough: enough, enoughInAll: enoughInAll, by: kinds)
  }

  func hasFailedRecently(_ count: PageCount, _ constraints: RunConstraints) -> Bool {
    var search = RunSearch(self)
    return search.hasFailedRecently(count, constraints)
  }

  func cacheFailedRequest(_ count: PageCount, _ constraints: RunConstraints) {
    var search = RunSearch(self)
    search.cacheFailedRequest(count, constraints)
  }
}
