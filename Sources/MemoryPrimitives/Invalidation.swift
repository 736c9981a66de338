// One processor's part in a TLB shootdown that another requested: page by page, or all translations at once.
//
// Invalidating a page costs some hundred cycles each, invalidating everything costs the walks that fill the TLB again.
// Beyond a few dozen pages the latter is cheaper (Linux: `tlb_single_page_flush_ceiling`, 33; FreeBSD has no limit).
//
// The function has neither instruction, so a test counts the calls.

import CPlatform

/// One processor's part in an invalidation.
@usableFromInline package enum Invalidation {
  /// Up to so many pages are invalidated one by one; for more, all translations are.
  @usableFromInline package static var pageLimit: UInt64 { 64 }

  /// Calls `invalidatePage` with the address of every page of `runs`, or `invalidateAll` once.
  @inline(always) package static func carryOut(
    _ runs: UnsafeBufferPointer<cp_page_run>, invalidatePage: (UInt64) -> Void, invalidateAll: () -> Void
  ) {
    guard isSmall(runs) else { return invalidateAll() }
    for run in runs {
      for page in 0..<run.count { invalidatePage(run.address &+ page &* Page.size) }
    }
  }

  /// Whether all runs together have at most `pageLimit` pages. The sum may not wrap: a few runs of `CP_ALL_PAGES` and
  /// more would add up to few pages.
  @inline(always) package static func isSmall(_ runs: UnsafeBufferPointer<cp_page_run>) -> Bool {
    var left = pageLimit
    for run in runs {
      guard run.count <= left else { return false }
      left -= run.count
    }
    return true
  }
}
