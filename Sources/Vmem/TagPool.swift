// The pages of a supply of tags, and the tags in them that no arena has.
//
// A page holds 128 units of 32 bytes; the first is its header, 127 are tags. The header counts the free ones and heads
// their list; pages with free tags form a list.

import MemoryPrimitives

/// The header of a page of tags.
struct TagPage {
  var first: Link
  var free: UInt32
  var previous: Link
  var next: Link
  var isStatic: UInt32
  var unused: (UInt32, UInt32, UInt32)

  static var tags: UInt32 { UInt32(Page.size / 32) - 1 }
}

/// The fields of a header, in place.
extension UnsafeMutablePointer<TagPage> {
  var first: Link {
    get { pointee.first }
    nonmutating set { pointee.first = newValue }
  }
  var free: UInt32 {
    get { pointee.free }
    nonmutating set { pointee.free = newValue }
  }
  var previous: Link {
    get { pointee.previous }
    nonmutating set { pointee.previous = newValue }
  }
  var next: Link {
    get { pointee.next }
    nonmutating set { pointee.next = newValue }
  }
  var isStatic: UInt32 { pointee.isStatic }
}

extension Link: ListLink {}

/// The links of the list of pages: in the header of each page.
struct TagPageLinks: ListLinks {
  typealias Link = Vmem.Link
  let links: TagLinks

  private func header(_ page: Link) -> UnsafeMutablePointer<TagPage> {
    links.pointer(page).assumingMemoryBound(to: TagPage.self)
  }
  func next(of page: Link) -> Link { header(page).next }
  func previous(of page: Link) -> Link { header(page).previous }
  func setNext(of page: Link, to link: Link) { header(page).next = link }
  func setPrevious(of page: Link, to link: Link) { header(page).previous = link }
}

/// Tags linked by `next`.
struct TagChain {
  var first: Link
  var count: UInt32
  static var empty: Self { Self(first: .none, count: 0) }
}

/// Plain data under the lock of the supply.
struct TagPool: ~Copyable {
  let links: TagLinks
  var source: TagSource
  /// Pages with a free tag. A page that becomes wholly free moves to the end unless it is static, and tags are
  /// allocated from the front. So the wholly free pages that can return to the source are the end of the list.
  var pagesWithFree = IntrusiveList<Link>()
  var free: UInt64 = 0
  var total: UInt64 = 0
  var pages: UInt64 = 0
  var staticPages: UInt64 = 0
  var hashPages: UInt64 = 0
  /// Wholly free pages that could return to the source.
  var wholePages: UInt64 = 0
  var firstArena: Arena?
  var lastArena: Arena?

  /// Wholly free pages that are kept.
  static var kept: UInt64 { 1 }

  init(_ links: TagLinks, _ source: TagSource) {
    self.links = links
    self.source = source
  }

  private var pageLinks: TagPageLinks { TagPageLinks(links: links) }

  @inline(always) func header(_ page: Link) -> UnsafeMutablePointer<TagPage> {
    links.pointer(page).assumingMemoryBound(to: TagPage.self)
  }
  /// Finds the page that holds a tag.
  @inline(always) func page(of tag: Link) -> Link {
    let address = UInt(bitPattern: links.pointer(tag)) & ~UInt(Page.size - 1)
    return links.link(UnsafeMutableRawPointer(bitPattern: address).unsafelyUnwrapped)
  }

  /// Makes a page of unused tags. Needs no lock: the page is in no list yet.
  static func prepare(_ page: UnsafeMutableRawPointer, _ links: TagLinks, isStatic: UInt32) {
    let header = page.bindMemory(to: TagPage.self, capacity: 1)
    let count = TagPage.tags
    let tags = (page + MemoryLayout<TagPage>.stride).bindMemory(to: Tag.self, capacity: Int(count))
    let first = links.link(page).rawValue + 1
    for i in 0..<count {
      let tag = tags + Int(i)
      tag.set(.unused, 0, 0)
      tag.next = i + 1 < count ? Link(first + i + 1) : .none
    }
    header.initialize(
      to: TagPage(
        first: Link(first), free: count, previous: .none, next: .none, isStatic: isStatic, unused: (0, 0, 0)))
  }

  /// Adds a prepared page.
  mutating func add(_ page: UnsafeMutableRawPointer) {
    let link = links.link(page)
    let isStatic = header(link).isStatic != 0
    pages += 1
    staticPages += isStatic ? 1 : 0
    wholePages += isStatic ? 0 : 1
    total += UInt64(TagPage.tags)
    free += UInt64(TagPage.tags)
    if isStatic {
      pagesWithFree.prepend(link, in: pageLinks)
    } else {
      pagesWithFree.append(link, in: pageLinks)
    }
  }

  /// Allocates up to `count` tags, fewer when there are no more.
  mutating func allocate(_ count: UInt32) -> TagChain {
    var chain = TagChain.empty
    while chain.count < count, !pagesWithFree.isEmpty {
      let page = header(pagesWithFree.first)
      let tag = page.first
      page.first = links[tag].next
      if page.free == TagPage.tags, page.isStatic == 0 { wholePages -= 1 }
      page.free -= 1
      if page.free == 0 { pagesWithFree.remove(pagesWithFree.first, in: pageLinks) }
      links[tag].next = chain.first
      chain.first = tag
      chain.count += 1
    }
    free -= UInt64(chain.count)
    return chain
  }

  /// Frees the tags of a chain.
  mutating func free(_ chain: TagChain) {
    var tag = chain.first
    while tag != .none {
      let next = links[tag].next
      let page = page(of: tag)
      let header = header(page)
      links[tag].kind = .unused
      links[tag].next = header.first
      header.first = tag
      header.free += 1
      if header.free == 1 { pagesWithFree.prepend(page, in: pageLinks) }
      if header.free == TagPage.tags, header.isStatic == 0 {
        wholePages += 1
        pagesWithFree.remove(page, in: pageLinks)
        pagesWithFree.append(page, in: pageLinks)
      }
      tag = next
    }
    free += UInt64(chain.count)
  }

  /// Removes a wholly free page beyond those that are kept from the supply, and returns it.
  mutating func detachSurplus() -> UnsafeMutableRawPointer? {
    guard wholePages > Self.kept else { return nil }
    let page = pagesWithFree.last
    pagesWithFree.remove(page, in: pageLinks)
    wholePages -= 1
    pages -= 1
    total -= UInt64(TagPage.tags)
    free -= UInt64(TagPage.tags)
    return links.pointer(page)
  }
}
