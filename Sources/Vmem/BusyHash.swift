// Busy segments by their first value: linear hashing (Litwin: "Linear hashing: a new tool for file and table
// addressing", VLDB 1980).
//
// The table grows by one bucket at a time, whenever there are more segments than buckets. It splits the next bucket
// in turn, so no operation pays for a whole resize. Its first 16 buckets are in the arena; then come pages of 1024
// buckets, the first eight named in the arena, the others in directory pages. When there is no page to grow into,
// chains become longer and the table tries again later. It shrinks when fewer than a quarter of its buckets are
// needed, so a steady number of segments moves no pages. Buckets are added and removed in the order of their pages,
// so a page is freed with its first bucket; a directory may be left without a page.

import MemoryPrimitives

struct BusyHash: ~Copyable {
  static var embeddedBuckets: UInt32 { 16 }
  static var directPages: UInt32 { 8 }
  static var directories: UInt32 { 32 }
  /// Words of the arena's memory that the table takes.
  static var words: Int { Int(embeddedBuckets + directPages + directories) }
  /// Buckets that the table can have.
  static var limit: UInt32 { (directPages + directories << 10) << 10 }

  let links: TagLinks
  let shift: UInt64
  let table: UnsafeMutablePointer<Link>
  var buckets: UInt32 = 16
  /// The least power of two that is at least `buckets`, less one.
  var mask: UInt32 = 15
  var count: UInt64 = 0
  /// The table would grow if it had a page.
  var wantsPage = false
  /// The table asks for a page again from this many segments on: the last time there was none.
  var growthThreshold: UInt64 = 0
  var visited: UInt64 = 0
  /// Pages that the table holds.
  var pages: UInt64 = 0

  init(_ links: TagLinks, shift: UInt64, table: UnsafeMutablePointer<Link>) {
    self.links = links
    self.shift = shift
    self.table = table
    table.initialize(repeating: .none, count: Self.words)
  }

  // MARK: Positions

  @inline(always) private func hash(_ address: UInt64) -> UInt32 {
    // Two rounds, so that neighbours and multiples spread alike: chains are as long with 100 segments as
    // with 1,000,000.
    var product = (address >> shift) &* 0x9e37_79b9_7f4a_7c15
    product = (product ^ (product >> 32)) &* 0xbf58_476d_1ce4_e5b9
    return UInt32(truncatingIfNeeded: product >> 32)
  }

  @inline(always) private func index(_ address: UInt64) -> UInt32 {
    let hash = hash(address)
    let index = hash & mask
    return index < buckets ? index : index & (mask >> 1)
  }

  @inline(always) private func words(_ page: Link) -> UnsafeMutablePointer<Link> {
    links.pointer(page).assumingMemoryBound(to: Link.self)
  }

  /// Where the link of a page of buckets is kept, or nil while its directory is missing.
  private func slot(page: UInt32) -> UnsafeMutablePointer<Link>? {
    if page < Self.directPages { return table + Int(Self.embeddedBuckets + page) }
    let beyond = page - Self.directPages
    let directory = table[Int(Self.embeddedBuckets + Self.directPages + beyond >> 10)]
    return directory == .none ? nil : words(directory) + Int(beyond & 1023)
  }

  @inline(always) private func bucket(_ index: UInt32) -> UnsafeMutablePointer<Link> {
    if index < Self.embeddedBuckets { return table + Int(index) }
    let page = index >> 10
    if page < Self.directPages {
      return words(table[Int(Self.embeddedBuckets + page)]) + Int(index & 1023)
    }
    let beyond = page - Self.directPages
    let directory = words(table[Int(Self.embeddedBuckets + Self.directPages + beyond >> 10)])
    return words(directory[Int(beyond & 1023)]) + Int(index & 1023)
  }

  // MARK: Content

  /// Finds the segment that begins at `address`; none if there is none.
  func find(_ address: UInt64) -> Link {
    var link = bucket(index(address)).pointee
    while link != .none, links[link].start != address { link = links[link].nextInHash }
    return link
  }

  /// A segment and the one before it in its chain, by which it can be removed.
  struct Position {
    var link: Link
    var previous: Link
  }

  /// Finds the segment that begins at `address` with its predecessor in the chain.
  mutating func findForRemoval(_ address: UInt64) -> Position? {
    var position = Position(link: bucket(index(address)).pointee, previous: .none)
    while position.link != .none {
      visited += 1
      if links[position.link].start == address { return position }
      position.previous = position.link
      position.link = links[position.link].nextInHash
    }
    return nil
  }

  mutating func remove(_ position: Position) {
    let next = links[position.link].nextInHash
    if position.previous == .none {
      bucket(index(links[position.link].start)).pointee = next
    } else {
      links[position.previous].nextInHash = next
    }
    count -= 1
  }

  mutating func insert(_ link: Link) {
    let tag = links[link]
    let bucket = bucket(index(tag.start))
    tag.nextInHash = bucket.pointee
    bucket.pointee = link
    count += 1
    visited += 1
    // Two splits, so that a table that had to wait for a page catches up.
    if count > buckets { split() }
    if count > buckets { split() }
  }

  // MARK: Growing and shrinking by a bucket

  private mutating func split() {
    guard buckets < Self.limit else { return }
    let fresh = buckets
    if fresh >= Self.embeddedBuckets {
      guard let slot = slot(page: fresh >> 10), slot.pointee != .none else {
        wantsPage = count >= growthThreshold
        return
      }
    }
    if fresh > mask { mask = mask << 1 | 1 }
    let from = bucket(fresh & (mask >> 1))
    let to = bucket(fresh)
    var link = from.pointee
    var stays = Link.none
    var goes = Link.none
    while link != .none {
      visited += 1
      let tag = links[link]
      let next = tag.nextInHash
      if hash(tag.start) & mask == fresh {
        tag.nextInHash = goes
        goes = link
      } else {
        tag.nextInHash = stays
        stays = link
      }
      link = next
    }
    from.pointee = stays
    to.pointee = goes
    buckets = fresh + 1
  }

  /// Adds a page that reads as zero. Answers false when the table no longer needs it.
  mutating func install(_ page: Link) -> Bool {
    wantsPage = false
    growthThreshold = 0
    guard count > buckets, buckets < Self.limit else { return false }
    let index = buckets >> 10
    if let slot = slot(page: index) {
      guard slot.pointee == .none else { return false }
      slot.pointee = page
      split()
    } else {
      table[Int(Self.embeddedBuckets + Self.directPages + (index - Self.directPages) >> 10)] = page
      wantsPage = true
    }
    pages += 1
    return true
  }

  /// Records that there was no page: the table asks again once it has more segments.
  mutating func postponeGrowth() {
    wantsPage = false
    growthThreshold = count + 1024
  }

  /// Merges buckets that are not needed, four at most, so that the table keeps pace with frees. Answers the pages that
  /// became empty, each with the link of the next in its first word.
  mutating func shrink() -> Link {
    var pages = Link.none
    for _ in 0..<4 {
      guard buckets > Self.embeddedBuckets, count * 4 < UInt64(buckets) else { break }
      merge(&pages)
    }
    return pages
  }

  /// Releases a directory that never got a page, of a table that no longer has a page.
  mutating func releaseDirectory() -> Link {
    var pages = Link.none
    for directory in 0..<Self.directories {
      let slot = table + Int(Self.embeddedBuckets + Self.directPages + directory)
      if slot.pointee != .none { release(slot, &pages) }
    }
    return pages
  }

  private mutating func merge(_ pages: inout Link) {
    let gone = buckets - 1
    let from = bucket(gone).pointee
    let to = bucket(gone & (mask >> 1))
    buckets = gone
    if gone == mask >> 1 + 1 { mask >>= 1 }
    if from != .none {
      var end = from
      visited += 1
      while links[end].nextInHash != .none {
        end = links[end].nextInHash
        visited += 1
      }
      links[end].nextInHash = to.pointee
      to.pointee = from
    }
    // The page of the removed bucket is empty when that was its first one (bucket 16 on page 0).
    guard gone & 1023 == 0 || gone == Self.embeddedBuckets else { return }
    let page = gone >> 10
    guard let slot = slot(page: page) else { return }
    release(slot, &pages)
    if page >= Self.directPages, (page - Self.directPages) & 1023 == 0 {
      release(table + Int(Self.embeddedBuckets + Self.directPages + (page - Self.directPages) >> 10), &pages)
    }
  }

  private mutating func release(_ slot: UnsafeMutablePointer<Link>, _ pages: inout Link) {
    words(slot.pointee)[0] = pages
    pages = slot.pointee
    slot.pointee = .none
    self.pages -= 1
  }

  // MARK: For the check

  func first(of index: UInt32) -> Link { bucket(index).pointee }
  func belongs(_ address: UInt64, in bucket: UInt32) -> Bool { index(address) == bucket }
  /// Pages that the table holds, counted one by one.
  func countPages() -> UInt64 {
    var pages: UInt64 = 0
    for i in Self.embeddedBuckets..<UInt32(Self.words) where table[Int(i)] != .none {
      pages += 1
      if i >= Self.embeddedBuckets + Self.directPages {
        for k in 0..<1024 where words(table[Int(i)])[k] != .none { pages += 1 }
      }
    }
    return pages
  }
}
