// The access of a workload of several threads to mapped memory by its address, as calls that cross the platform
// interface. The processor that the caller runs on makes each access, with its own translations.
//
// In the kernel that is an instruction; on the host a software processor for each thread. Where no page is mapped, the
// access returns an error and changes nothing.

import MemoryPrimitives
import Paging

/// Reads and writes of a word. A result of 0 is success; any other is one more than the number of a `PagingError`.
package struct WordAccess: PageAccess {
  package typealias Load =
    @convention(c) (UnsafeMutableRawPointer?, UInt64, UnsafeMutablePointer<UInt64>) -> UInt8
  package typealias Store = @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> UInt8

  let context: UnsafeMutableRawPointer?
  let loadWord: Load
  let storeWord: Store
  let loadPage: Load

  /// - `loadWord` and `storeWord` access a word as any instruction would, page faults included, and answer 0. When the
  ///   page could not be brought in, they answer one more than the number of a `PagingError`.
  /// - `loadPage` reads the 512 words of a page.
  package init(
    _ context: UnsafeMutableRawPointer?, loadWord: @escaping Load, storeWord: @escaping Store,
    loadPage: @escaping Load
  ) {
    self.context = context
    self.loadWord = loadWord
    self.storeWord = storeWord
    self.loadPage = loadPage
  }

  package func load(_ address: VirtualAddress) throws(PagingError) -> UInt64 {
    var value: UInt64 = 0
    let answer = withUnsafeMutablePointer(to: &value) { loadWord(context, address.rawValue, $0) }
    if answer != 0 { throw PagingError(rawValue: answer - 1) ?? .notPageable }
    return value
  }
  package func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError) {
    let answer = storeWord(context, address.rawValue, value)
    if answer != 0 { throw PagingError(rawValue: answer - 1) ?? .notPageable }
  }
  package func load(
    page address: VirtualAddress, into words: UnsafeMutablePointer<UInt64>
  ) throws(PagingError) {
    let answer = loadPage(context, address.rawValue, words)
    if answer != 0 { throw PagingError(rawValue: answer - 1) ?? .notPageable }
  }
}

extension WordAccess {
  /// The access of a software processor, which must stay in its place.
  package init(_ processor: UnsafeMutablePointer<SoftwareProcessor>) {
    self.init(
      UnsafeMutableRawPointer(processor),
      loadWord: { context, address, value in
        answer(context) { (processor) throws(PagingError) in
          value.pointee = try processor.load(VirtualAddress(address))
        }
      },
      storeWord: { context, address, value in
        answer(context) { (processor) throws(PagingError) in
          try processor.store(VirtualAddress(address), value)
        }
      },
      loadPage: { context, address, words in
        answer(context) { (processor) throws(PagingError) in
          try processor.load(page: VirtualAddress(address), into: words)
        }
      })
  }
}

private func answer(
  _ context: UnsafeMutableRawPointer?, _ access: (SoftwareProcessor) throws(PagingError) -> Void
) -> UInt8 {
  do throws(PagingError) {
    try access(context.unsafelyUnwrapped.assumingMemoryBound(to: SoftwareProcessor.self).pointee)
    return 0
  } catch {
    return error.rawValue + 1
  }
}
