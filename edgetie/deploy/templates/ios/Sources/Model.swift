import Foundation

/// The reason why the model does not answer.
struct ModelError: LocalizedError {
    let errorDescription: String?

    init() { errorDescription = String(cString: model_problem()) }
}

/// A language model and its tokenizer, in C. Use it from one thread at a time.
final class Model {
    private let native: OpaquePointer

    /// - Parameter folder: the folder that contains `model/`.
    init(folder: String) throws {
        guard let opened = model_open(folder) else { throw ModelError() }
        native = opened
    }

    deinit { model_close(native) }

    /// The execution provider that runs the model, and if it is not edgetie's, why.
    var provider: String { String(cString: model_provider(native)) }

    /// Streams the answer's text; `show` gets each part of it and returns whether to go on.
    func answer(_ prompt: String, most: Int, show: (String) -> Bool) throws {
        try withoutActuallyEscaping(show) { show in
            let listener = Listener(show)
            let answered = withExtendedLifetime(listener) {
                model_answer(
                    native, prompt, most,
                    { user, text, length, _, ends in
                        let listener = Unmanaged<Listener>.fromOpaque(user!).takeUnretainedValue()
                        return listener.take(text, length, ends != 0) ? 1 : 0
                    },
                    Unmanaged.passUnretained(listener).toOpaque())
            }
            if answered == 0 { throw ModelError() }
        }
    }
}

/// Decodes UTF-8 that comes in parts, which may end within a character.
private final class Listener {
    private let show: (String) -> Bool
    private var rest = Data()

    init(_ show: @escaping (String) -> Bool) { self.show = show }

    func take(_ text: UnsafePointer<CChar>?, _ length: Int, _ ends: Bool) -> Bool {
        if ends { return false }
        if let text { rest.append(Data(bytes: text, count: length)) }
        guard let decoded = String(data: rest, encoding: .utf8) else { return true }
        rest.removeAll()
        return show(decoded)
    }
}
