// The check of all invariants in Vmem.swift. At most n log n for n tags, of it only the spans pay the logarithm:
// they are sorted through a link that spans don't use, so the check needs no memory.
//
// It takes no lock, for it would hold it too long: nothing else may use the arena meanwhile.

import MemoryPrimitives

extension Arena {
  /// Checks every invariant of the arena: nil when all hold, else the one that is broken. Linear in tags, n log
  /// n in spans. Nothing else may use the arena meanwhile.
  public func checkInvariants() -> StaticString? { state.pointee.core.quiet.pointee.check() }

  /// Tags that the arena has, spares included. Nothing else may use the arena meanwhile.
  var tagsHeld: UInt64 {
    let core = state.pointee.core.quiet
    return core.pointee.spans + core.pointee.lists.count + core.pointee.hash.count
      + UInt64(core.pointee.spares.count)
  }
}

extension ArenaCore {
  mutating func check() -> StaticString? {
    checkSegments() ?? checkOverlap() ?? checkLists() ?? checkHash() ?? checkSpares()
  }

  private var quantumMask: UInt64 { (1 << shift) - 1 }

  /// Invariants 1, 2, 3, 6 and 7. Marks each free segment for `checkLists`, each busy one by its place in the hash.
  private mutating func checkSegments() -> StaticString? {
    var counted: (spans: UInt64, free: UInt64, busy: UInt64) = (0, 0, 0)
    var sizes: (total: UInt64, busy: UInt64) = (0, 0)
    var largest: UInt64 = 0
    var link = firstSpan
    var before = Link.none
    while link != .none {
      let span = links[link]
      guard span.pointee.kind.isSpan else { return "vmem: a span's tag is no span" }
      guard span.pointee.previous == before else { return "vmem: spans are linked wrongly" }
      guard span.pointee.start <= span.pointee.last else { return "vmem: a span ends before it starts" }
      guard span.pointee.start & quantumMask == 0, span.pointee.last & quantumMask == quantumMask else {
        return "vmem: a span is off the quantum"
      }
      counted.spans += 1
      guard counted.spans <= spans else { return "vmem: spans are counted wrongly" }
      sizes.total &+= span.pointee.extent &+ 1
      var previous = link
      var expected = span.pointee.start
      var wasFree = false
      var isEnded = false
      var segment = span.pointee.nextSegment
      while segment != .none {
        let tag = links[segment]
        guard !isEnded else { return "vmem: a segment lies behind the end of its span" }
        guard tag.pointee.previousSegment == previous else { return "vmem: segments are linked wrongly" }
        guard tag.pointee.start == expected, tag.pointee.last >= expected,
          tag.pointee.last <= span.pointee.last
        else { return "vmem: segments do not tile their span" }
        guard tag.pointee.start & quantumMask == 0, tag.pointee.last & quantumMask == quantumMask else {
          return "vmem: a segment is off the quantum"
        }
        switch tag.pointee.kind {
        case .free:
          guard !wasFree else { return "vmem: two free segments are neighbours" }
          guard !tag.pointee.isMarked else { return "vmem: a free segment is met twice" }
          tag.pointee.isMarked = true
          wasFree = true
          counted.free += 1
          largest = max(largest, tag.pointee.extent)
          if span.pointee.kind == .imported, tag.pointee.extent == span.pointee.extent {
            return "vmem: an imported span is wholly free"
          }
        case .busy:
          wasFree = false
          counted.busy += 1
          sizes.busy &+= tag.pointee.extent &+ 1
          guard hash.find(tag.pointee.start) == segment else {
            return "vmem: a busy segment is not in the hash"
          }
        default:
          return "vmem: a segment's tag is no segment"
        }
        guard counted.free <= lists.count, counted.busy <= hash.count else {
          return "vmem: segments are counted wrongly"
        }
        isEnded = tag.pointee.last == span.pointee.last
        expected = tag.pointee.last &+ 1
        previous = segment
        segment = tag.pointee.nextSegment
      }
      guard isEnded else { return "vmem: segments end before their span" }
      before = link
      link = span.pointee.next
    }
    guard before == lastSpan else { return "vmem: the last span is not the last" }
    guard counted.spans == spans, counted.free == lists.count, counted.busy == hash.count else {
      return "vmem: spans or segments are counted wrongly"
    }
    guard sizes.total == total, sizes.busy == allocated else { return "vmem: sizes differ from the sums" }
    guard !lists.largestIsKnown || lists.count == 0 || lists.largest == largest else {
      return "vmem: the largest free segment is another"
    }
    return nil
  }

  /// Invariant 4. Takes the marks off again.
  private mutating func checkLists() -> StaticString? {
    var members: UInt64 = 0
    for list in 0..<FreeLists.heads {
      let head = lists.head[list]
      let bit = lists.words[list >> 6] >> UInt64(list & 63) & 1 != 0
      guard bit == (head != .none) else { return "vmem: a list's bit is wrong" }
      var before = Link.none
      var link = head
      while link != .none {
        let tag = links[link]
        guard tag.pointee.kind == .free, tag.pointee.isMarked else {
          return "vmem: what is on a free list is no free segment of this arena"
        }
        tag.pointee.isMarked = false
        guard lists.index(extent: tag.pointee.extent) == list else {
          return "vmem: a free segment is on the list of another class"
        }
        guard tag.pointee.previous == before else { return "vmem: a free list is linked wrongly" }
        members += 1
        before = link
        link = tag.pointee.next
      }
    }
    for word in 0..<8 {
      guard (lists.summary >> UInt64(word) & 1 != 0) == (lists.words[word] != 0) else {
        return "vmem: the summary of the lists is wrong"
      }
    }
    guard members == lists.count else { return "vmem: a free segment is on no list" }
    guard lists.cursors == nil, walkers == nil else { return "vmem: a place of a pass was left behind" }
    return nil
  }

  /// Invariant 5, second half: the hash holds as many as there are busy segments, each in its bucket.
  private func checkHash() -> StaticString? {
    var members: UInt64 = 0
    let count = hash.count
    var isRight = hash.mask >= hash.buckets - 1 && hash.mask >> 1 < hash.buckets
    for bucket in 0..<hash.buckets {
      var link = hash.first(of: bucket)
      while link != .none, members <= count {
        members += 1
        let tag = links[link]
        if tag.pointee.kind != .busy || !hash.belongs(tag.pointee.start, in: bucket) { isRight = false }
        link = tag.pointee.nextInHash
      }
    }
    guard isRight else { return "vmem: a hash bucket holds what does not belong there" }
    guard hash.countPages() == hash.pages else { return "vmem: pages of the hash are counted wrongly" }
    return members == count ? nil : "vmem: the hash is counted wrongly"
  }

  /// Invariant 8.
  private func checkSpares() -> StaticString? {
    guard spares.hidden == 0 else { return "vmem: tags stayed hidden behind an operation" }
    var count: UInt32 = 0
    var link = spares.first
    while link != .none, count <= spares.count {
      guard links[link].pointee.kind == .unused else { return "vmem: a spare tag is in use" }
      count += 1
      link = links[link].pointee.next
    }
    return count == spares.count ? nil : "vmem: spare tags are counted wrongly"
  }

  // MARK: Invariant 2: spans don't overlap

  /// Sorts the spans through their idle link to the previous segment and compares neighbours.
  private func checkOverlap() -> StaticString? {
    var link = firstSpan
    while link != .none {
      links[link].pointee.previousSegment = links[link].pointee.next
      link = links[link].pointee.next
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
      let next = links[link].pointee.previousSegment
      if next != .none, links[link].pointee.last >= links[next].pointee.start {
        broken = "vmem: two spans overlap"
      }
      links[link].pointee.previousSegment = .none
      link = next
    }
    return broken
  }

  /// One round of a merge sort of a list: pairs of sorted runs become one each.
  private func mergeRuns(of length: Int, _ list: Link) -> Link {
    var rest = list
    var first = Link.none
    var end = Link.none
    while rest != .none {
      var left = rest
      var leftCount = 0
      var right = rest
      while leftCount < length, right != .none {
        right = links[right].pointee.previousSegment
        leftCount += 1
      }
      var rightCount = length
      while leftCount > 0 || (rightCount > 0 && right != .none) {
        let taken: Link
        if leftCount > 0,
          rightCount == 0 || right == .none || links[left].pointee.start <= links[right].pointee.start
        {
          taken = left
          left = links[left].pointee.previousSegment
          leftCount -= 1
        } else {
          taken = right
          right = links[right].pointee.previousSegment
          rightCount -= 1
        }
        if end == .none { first = taken } else { links[end].pointee.previousSegment = taken }
        end = taken
      }
      rest = right
    }
    if end != .none { links[end].pointee.previousSegment = .none }
    return first
  }
}

extension Tags {
  /// Checks the supply and every arena that draws on it: nil when all is well, else the invariant that is broken.
  /// Nothing else may use any of them meanwhile.
  public func checkInvariants() -> StaticString? {
    let pool = state.pointee.pool.quiet
    if let broken = pool.pointee.check() { return broken }
    var held: UInt64 = 0
    var hashPages: UInt64 = 0
    var broken: StaticString?
    forEachArena { arena in
      broken = broken ?? arena.checkInvariants()
      held += arena.tagsHeld
      hashPages += arena.state.pointee.core.quiet.pointee.hash.pages
    }
    if let broken { return broken }
    guard held == pool.pointee.total - pool.pointee.free else { return "vmem: tags are lost, or held twice" }
    return hashPages == pool.pointee.hashPages ? nil : "vmem: pages of hashes are counted wrongly"
  }
}

extension TagPool {
  func check() -> StaticString? {
    var free: UInt64 = 0
    var whole: UInt64 = 0
    var before = Link.none
    var page = first
    while page != .none {
      let header = header(page)
      guard header.pointee.previous == before else { return "vmem: pages of tags are linked wrongly" }
      guard header.pointee.free > 0, header.pointee.free <= TagPage.tags else {
        return "vmem: a page of tags is listed without free ones"
      }
      let isWhole = header.pointee.free == TagPage.tags && header.pointee.isStatic == 0
      guard isWhole || whole == 0 else { return "vmem: wholly free pages of tags are not at the end" }
      whole += isWhole ? 1 : 0
      var count: UInt32 = 0
      var tag = header.pointee.first
      while tag != .none, count <= header.pointee.free {
        guard links[tag].pointee.kind == .unused, self.page(of: tag) == page else {
          return "vmem: a free tag is in use, or on another page's list"
        }
        count += 1
        tag = links[tag].pointee.next
      }
      guard count == header.pointee.free else { return "vmem: free tags of a page are counted wrongly" }
      free += UInt64(count)
      guard free <= self.free else { return "vmem: free tags are counted wrongly" }
      before = page
      page = header.pointee.next
    }
    guard before == last else { return "vmem: the last page of tags is not the last" }
    guard free == self.free, whole == wholePages, total == pages * UInt64(TagPage.tags) else {
      return "vmem: tags are counted wrongly"
    }
    return nil
  }
}
