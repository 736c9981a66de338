// The check of all invariants in Vmem.swift. At most n log n for n tags; only the spans pay the logarithm. They are
// sorted through a link that spans don't use, so the check needs no memory.
//
// It takes no lock, because it would hold the lock too long: no other call may use the arena at the same time. Threads
// that wait in it may sleep.

import MemoryPrimitives

extension Arena {
  /// Checks every invariant of the arena: nil when all hold, else the broken one, by its number. Linear in tags, n log
  /// n in spans. No other call may use the arena at the same time.
  public func checkInvariants() -> StaticString? { state.core.quiet.pointee.check() }

  /// Tags that the arena has, spares included. No other call may use the arena at the same time.
  var tagsHeld: UInt64 {
    let core = state.core.quiet
    return core.pointee.spans + core.pointee.lists.count + core.pointee.hash.count
      + UInt64(core.pointee.spares.count)
  }
}

extension ArenaCore {
  mutating func check() -> StaticString? {
    checkSpans() ?? checkOverlap() ?? checkLists() ?? checkHash() ?? checkSpares() ?? checkWaiters()
  }

  /// The sums of a walk over all segments.
  private struct Sums {
    var spans: UInt64 = 0
    var free: UInt64 = 0
    var busy: UInt64 = 0
    var total: UInt64 = 0
    var allocated: UInt64 = 0
    /// The extent of the largest free segment.
    var largest: UInt64 = 0
  }

  private var quantumMask: UInt64 { (1 << shift) - 1 }

  private func isOnQuantum(_ tag: TagPointer) -> Bool {
    tag.start & quantumMask == 0 && tag.last & quantumMask == quantumMask
  }

  /// Checks VM-1, VM-2, VM-3, VM-6 and VM-7, and that the hash finds each busy segment. Marks each free segment for
  /// `checkLists`.
  private mutating func checkSpans() -> StaticString? {
    var sums = Sums()
    var link = firstSpan
    var before = Link.none
    while link != .none {
      let span = links[link]
      guard span.kind.isSpan else { return "VM-1: the tag of a span is of another kind" }
      guard span.previous == before else { return "VM-1: spans are linked wrongly" }
      guard span.start <= span.last else { return "VM-1: a span ends before it starts" }
      guard isOnQuantum(span) else { return "VM-3: a span is off the quantum" }
      sums.spans += 1
      guard sums.spans <= spans else { return "VM-6: spans are counted wrongly" }
      sums.total &+= span.extent &+ 1
      if let broken = checkSegments(of: link, &sums) { return broken }
      before = link
      link = span.next
    }
    guard before == lastSpan else { return "VM-1: the last span is not the last" }
    guard sums.spans == spans, sums.free == lists.count, sums.busy == hash.count else {
      return "VM-6: spans or segments are counted wrongly"
    }
    guard sums.total == total, sums.allocated == allocated else { return "VM-6: sizes differ from the sums" }
    guard !lists.largestIsKnown || lists.count == 0 || lists.largest == sums.largest else {
      return "VM-6: the largest free segment is another"
    }
    return nil
  }

  private mutating func checkSegments(of spanLink: Link, _ sums: inout Sums) -> StaticString? {
    let span = links[spanLink]
    var previous = spanLink
    var expected = span.start
    var wasFree = false
    var isEnded = false
    var segment = span.nextSegment
    while segment != .none {
      let tag = links[segment]
      guard !isEnded else { return "VM-1: a segment lies beyond the end of its span" }
      guard tag.previousSegment == previous else { return "VM-1: segments are linked wrongly" }
      guard tag.start == expected, tag.last >= expected,
        tag.last <= span.last
      else { return "VM-1: segments do not tile their span" }
      guard isOnQuantum(tag) else { return "VM-3: a segment is off the quantum" }
      switch tag.kind {
      case .free:
        guard !wasFree else { return "VM-2: two free segments are neighbours" }
        guard !tag.isMarked else { return "VM-1: a free segment is in two spans" }
        tag.isMarked = true
        wasFree = true
        sums.free += 1
        sums.largest = max(sums.largest, tag.extent)
        if span.kind == .imported, tag.extent == span.extent {
          return "VM-7: an imported span is wholly free"
        }
      case .busy:
        wasFree = false
        sums.busy += 1
        sums.allocated &+= tag.extent &+ 1
        guard hash.find(tag.start) == segment else {
          return "VM-5: a busy segment is not in the hash"
        }
      default:
        return "VM-1: the tag of a segment is of another kind"
      }
      guard sums.free <= lists.count, sums.busy <= hash.count else {
        return "VM-6: segments are counted wrongly"
      }
      isEnded = tag.last == span.last
      expected = tag.last &+ 1
      previous = segment
      segment = tag.nextSegment
    }
    return isEnded ? nil : "VM-1: segments end before their span"
  }

  /// Checks VM-4 and VM-9. Clears the marks.
  private mutating func checkLists() -> StaticString? {
    var members: UInt64 = 0
    for list in 0..<FreeLists.heads {
      let head = lists.head[list]
      let bit = lists.words[list >> 6] >> UInt64(list & 63) & 1 != 0
      guard bit == (head != .none) else { return "VM-4: a list's bit is wrong" }
      var before = Link.none
      var link = head
      while link != .none {
        let tag = links[link]
        guard tag.kind == .free, tag.isMarked else {
          return "VM-4: a member of a free list is no free segment of this arena"
        }
        tag.isMarked = false
        guard lists.index(extent: tag.extent) == list else {
          return "VM-4: a free segment is on the list of another class"
        }
        guard tag.previous == before else { return "VM-4: a free list is linked wrongly" }
        members += 1
        before = link
        link = tag.next
      }
    }
    for word in 0..<8 {
      guard (lists.summary >> UInt64(word) & 1 != 0) == (lists.words[word] != 0) else {
        return "VM-4: the summary of the lists is wrong"
      }
    }
    guard members == lists.count else { return "VM-4: a free segment is on no list" }
    guard lists.cursors == nil, walkers == nil else { return "VM-9: a search or a walk is still registered" }
    return nil
  }

  /// Checks the rest of VM-5: the hash holds as many as there are busy segments, each in its bucket.
  private func checkHash() -> StaticString? {
    var members: UInt64 = 0
    let count = hash.count
    var isRight = hash.mask >= hash.buckets - 1 && hash.mask >> 1 < hash.buckets
    for bucket in 0..<hash.buckets {
      var link = hash.first(of: bucket)
      while link != .none, members <= count {
        members += 1
        let tag = links[link]
        if tag.kind != .busy || !hash.belongs(tag.start, in: bucket) { isRight = false }
        link = tag.nextInHash
      }
    }
    guard isRight else { return "VM-5: a bucket of the hash holds a tag that belongs elsewhere" }
    guard hash.countPages() == hash.pages else { return "VM-6: pages of the hash are counted wrongly" }
    return members == count ? nil : "VM-5: the hash holds another number of segments than are busy"
  }

  /// Checks VM-8 for the spares.
  private func checkSpares() -> StaticString? {
    var waiting: UInt32 = 0
    var waiter = waiters.first
    while let pointer = waiter.pointer {
      waiting += pointer.pointee.tags
      waiter = pointer.pointee.next
    }
    guard spares.hidden == waiting else { return "VM-8: tags are still hidden after an operation" }
    var count: UInt32 = 0
    var link = spares.first
    while link != .none, count <= spares.count {
      guard links[link].kind == .unused else { return "VM-8: a spare tag is in use" }
      count += 1
      link = links[link].next
    }
    return count == spares.count ? nil : "VM-8: spare tags are counted wrongly"
  }

  /// Checks VM-10, with a pass over the free segments for each waiter.
  private func checkWaiters() -> StaticString? {
    var count: UInt64 = 0
    var unsettled: UInt64 = 0
    var before = ArenaWaiterLink.none
    var waiter = waiters.first
    while let pointer = waiter.pointer, count < waiters.count {
      count += 1
      unsettled += pointer.pointee.isSettled ? 0 : 1
      guard pointer.pointee.previous == before else { return "VM-10: waiters are linked wrongly" }
      guard pointer.pointee.start == nil else { return "VM-10: a waiter that was served still waits" }
      if pointer.pointee.isSettled, isSatisfiable(pointer.pointee.request) {
        return "VM-10: a free segment satisfies a waiter"
      }
      before = waiter
      waiter = pointer.pointee.next
    }
    guard count == waiters.count, waiter == .none, unsettled == waiters.unsettled else {
      return "VM-10: waiters are counted wrongly"
    }
    return nil
  }

  private func isSatisfiable(_ request: Request) -> Bool {
    for list in 0..<FreeLists.classes {
      var link = lists.head[list]
      while link != .none {
        if request.lowestStart(in: links[link].start, links[link].last) != nil { return true }
        link = links[link].next
      }
    }
    return false
  }

  // MARK: VM-2: spans don't overlap

  /// Sorts the spans through their idle link to the previous segment and compares neighbours.
  private func checkOverlap() -> StaticString? {
    var link = firstSpan
    while link != .none {
      links[link].previousSegment = links[link].next
      link = links[link].next
    }
    var first = firstSpan
    var run = 1
    while UInt64(run) < spans {
      first = mergeRuns(of: run, first)
      run *= 2
    }
    var broken: StaticString?
    link = first
    while link != .none {
      let next = links[link].previousSegment
      if next != .none, links[link].last >= links[next].start {
        broken = "VM-2: two spans overlap"
      }
      links[link].previousSegment = .none
      link = next
    }
    return broken
  }

  /// Merges each pair of sorted runs of a list: one round of a merge sort.
  private func mergeRuns(of length: Int, _ list: Link) -> Link {
    var rest = list
    var first = Link.none
    var end = Link.none
    while rest != .none {
      var left = rest
      var leftCount = 0
      var right = rest
      while leftCount < length, right != .none {
        right = links[right].previousSegment
        leftCount += 1
      }
      var rightCount = length
      while leftCount > 0 || (rightCount > 0 && right != .none) {
        let least: Link
        if leftCount > 0,
          rightCount == 0 || right == .none || links[left].start <= links[right].start
        {
          least = left
          left = links[left].previousSegment
          leftCount -= 1
        } else {
          least = right
          right = links[right].previousSegment
          rightCount -= 1
        }
        if end == .none { first = least } else { links[end].previousSegment = least }
        end = least
      }
      rest = right
    }
    if end != .none { links[end].previousSegment = .none }
    return first
  }
}

extension Tags {
  /// Checks the supply and every arena that draws on it: nil when all invariants hold, else the broken one, by its
  /// number. No other call may use any of them at the same time.
  package func checkInvariants() -> StaticString? {
    let pool = state.pool.quiet
    if let broken = pool.pointee.check() { return broken }
    var held: UInt64 = 0
    var hashPages: UInt64 = 0
    var broken: StaticString?
    forEachArena { arena in
      broken = broken ?? arena.checkInvariants()
      held += arena.tagsHeld
      hashPages += arena.state.core.quiet.pointee.hash.pages
    }
    if let broken { return broken }
    guard held == pool.pointee.total - pool.pointee.free else { return "VM-8: tags are lost, or held twice" }
    return hashPages == pool.pointee.hashPages ? nil : "VM-6: pages of hashes are counted wrongly"
  }
}

extension TagPool {
  /// Checks VM-8 for the tags that no arena has.
  func check() -> StaticString? {
    var free: UInt64 = 0
    var whole: UInt64 = 0
    var before = Link.none
    var page = pagesWithFree.first
    while page != .none {
      let header = header(page)
      guard header.previous == before else { return "VM-8: pages of tags are linked wrongly" }
      guard header.free > 0, header.free <= TagPage.tags else {
        return "VM-8: a page of tags is listed without free ones"
      }
      let isWhole = header.free == TagPage.tags && header.isStatic == 0
      guard isWhole || whole == 0 else { return "VM-8: wholly free pages of tags are not at the end" }
      whole += isWhole ? 1 : 0
      var count: UInt32 = 0
      var tag = header.first
      while tag != .none, count <= header.free {
        guard links[tag].kind == .unused, self.page(of: tag) == page else {
          return "VM-8: a free tag is in use, or on another page's list"
        }
        count += 1
        tag = links[tag].next
      }
      guard count == header.free else { return "VM-8: free tags of a page are counted wrongly" }
      free += UInt64(count)
      guard free <= self.free else { return "VM-8: free tags are counted wrongly" }
      before = page
      page = header.next
    }
    guard before == pagesWithFree.last else { return "VM-8: the last page of tags is not the last" }
    guard free == self.free, whole == wholePages, total == pages * UInt64(TagPage.tags) else {
      return "VM-8: tags are counted wrongly"
    }
    return nil
  }
}
